/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the eBPF program and the agent share: keys, values and numbers of the maps.
 *
 * ipmasq_agent/planes/bpf/layout.py says the same in Python; a test compares the two by
 * the BTF of the compiled program. Pinned maps of another size are never taken for these: they
 * are made anew.
 */
#ifndef IPMASQ_MASQ_H
#define IPMASQ_MASQ_H

#include <linux/types.h>

/* An address of either family: IPv4 has the first word, and zeros after it. */
struct address {
	__be32 word[4];
};

/* A key of the tries of prefixes; bits past the length are zero. */
struct prefix {
	__u32 length; /* of the family: 0-32 or 0-128 */
	struct address address;
};

enum family {
	IPV4,
	IPV6,
	FAMILIES,
};

/* Each family has two sets of tries and settings: one in force, one to fill next. */
#define GENERATIONS 2
#define SLOT(family, generation) ((family) * GENERATIONS + (generation))
#define SLOTS (FAMILIES * GENERATIONS)

/* A value in the trie of decisions. */
enum verdict {
	MASQUERADE = 1,
	NON_MASQUERADE = 2,
};

/*
 * IPv4 has its decisions twice: as a trie of prefixes, and as a bitmap that packets are
 * decided by, where a look-up costs the same however many prefixes there are. A block of
 * addresses (a /8, a /16 or a /24) has 256 parts, and for each of them two bits: a verdict,
 * or one of these. Zeros are what nobody has filled.
 */
#define ASK_TRIE 0
#define ASK_PART 3 /* it is decided in the block that the part is itself */
#define PARTS	 256

struct block {
	__u8 codes[PARTS / 4]; /* the first part's in the lowest bits */
};

/* Which block it is, among those of a slot: a 1, then the bits that its addresses share. */
#define BLOCK_NUMBER(address, length) (1U << (length) | (address) >> (32 - (length)))

/* What `write_block` is given as a packet; nothing is before it but room for a header. */
struct block_to_write {
	__u8 header[16];
	__u32 slot;
	__u32 number;
	struct block block;
};

/* Bits of settings.flags. */
#define MANAGED		 (1 << 0) /* there is a policy: without it every packet passes */
#define ONLY_SOURCES	 (1 << 1) /* only packets from a prefix in the trie of sources */
#define FIXED_SOURCES	 (1 << 2) /* some destinations have a source address of their own */
#define RANDOM_FULLY	 (1 << 3) /* do not try the pod's own port first */
#define ONLY_DEVICES	 (1 << 4) /* the policy names devices: told to readers only */
#define LOCAL_TOO	 (1 << 5) /* also packets to the node itself */
#define DRAINING	 (1 << 6) /* flows there are go on, new ones are none of ours */
#define INDEXING	 (1 << 7) /* flows are also found by what they were before translation */

#define MAX_PORT_RANGES 15

struct port_range {
	__u16 first, last; /* host order, both included */
};

/* What is in force besides the tries. */
struct settings {
	__u64 stamp; /* chosen by the agent for each policy: the tries are those it knows */
	__u32 flags;
	__u32 port_ranges; /* how many; none means 1024-65535, the pod's own port first */
	struct port_range ports[MAX_PORT_RANGES];
	__u32 port_count; /* how many ports the ranges have together */
};

/* What a family's packets are decided by: the generation in force. */
struct control {
	__u32 generation;
};

/* What is of the node as a whole. */
struct node {
	__u64 secret[2]; /* of the hash that gives ports: who knows it could guess them */
	__u16 mark;	 /* in tc_index of a packet that one of our devices has dealt with, see verdict.h */
	__u16 several;	 /* devices have the programs: an answer may leave by another one */
	__u16 pad[2];
};

/* A device with our program on it; the key is its ifindex. */
struct device {
	struct address source[FAMILIES]; /* what masquerading gives packets that leave here */
	__u8 has_source[FAMILIES];
	__u8 egress[FAMILIES]; /* bit n: in generation n it is a device of the policy */
	__u8 link_header; /* bytes before the IP header: 14, or 0 where there is none */
	__u8 loopback;	  /* all that leaves here is for the node itself */
	__u8 mac[6];	  /* with a link header: frames from another one are not the node's */
};

/* An address of the node itself, on whatever device. */
struct own_address {
	struct address address;
	__u32 family;
};

/*
 * A flow as its replies are on the wire, before they are translated back: `local` is the
 * address with which it leaves the node. One key space for all that leaves: no two flows
 * can have the same replies.
 */
struct flow_key {
	struct address remote, local;
	__be16 remote_port, local_port; /* ICMP query: 0, and its identifier */
	__u8 protocol;
	__u8 family;
	__u8 pad[2];
};

/* Bits of a flow's state, the upper half of its `life`. */
#define FROM_OUTSIDE	(1 << 0) /* the first packet came in */
#define SEEN_OUTWARD	(1 << 1)
#define SEEN_INWARD	(1 << 2)
#define CONFIRMED	(1 << 3) /* TCP: who began it has answered the answer */
#define FIN_OUTWARD	(1 << 4)
#define FIN_INWARD	(1 << 5)
#define RESET_OUTWARD	(1 << 6)
#define INDEXED		(1 << 7) /* it is in `moved` too */
#define TAKING		(1 << 8) /* about to get another owner, or to go: nobody's for now */
#define BY_FIXED	(1 << 9) /* its address is one that the policy fixes */
#define RESET_INWARD	(1 << 10)
#define ACCEPTED	(1 << 11) /* TCP: the opener has to acknowledge this number: */
#define RESET		(RESET_OUTWARD | RESET_INWARD)
#define NUMBER_SHIFT	16	  /* its lower half, from here to the state's last bit */

/*
 * What changes of a flow, in one word that is changed by compare-and-exchange: its state,
 * and in the lower half when it expires, in seconds of CLOCK_MONOTONIC.
 */
#define LIFE(state, expires) ((__u64)(state) << 32 | (__u32)(expires))
#define STATE(life)	     ((__u32)((life) >> 32))
#define EXPIRES(life)	     ((__u32)(life))

/*
 * A flow that leaves with an address of the node: its owner is what its packets come from.
 * The node's own have an owner that is the key's local end: they keep their address.
 */
struct flow {
	struct address address; /* this and the next are as in a `place` */
	__be16 port;
	__u16 pad;
	__u32 ifindex; /* of the device through which it left at first */
	__u64 life;
};

/* A flow that leaves as it is, whatever the policy says by now. */
struct kept {
	__u64 life;
};

/* Each of those who want to know of flows as they begin has a ring of its own. */
#define OBSERVERS 4

/* What a ring is told of a flow; with its header it takes 80 bytes there. */
struct begun {
	struct flow_key key;
	struct address owner; /* what its packets come from; of a kept flow its local end */
	__be16 owner_port;
	__u16 pad[3];
	__u64 moment; /* ns of CLOCK_MONOTONIC */
};

/* An end of a flow; where a translated one is that is not at its first place. */
struct place {
	struct address address;
	__be16 port;
	__u16 pad;
};

/* Fragments but the first have no ports: the first one leaves them here. */
struct fragment_key {
	struct address source, destination;
	__be32 id;
	__u8 protocol;
	__u8 family;
	__u8 pad[2];
};

struct fragment {
	__be16 source_port, destination_port;
	__u32 expires;
};

/* What became of a packet; the agent's metrics are named after these. */
enum outcome {
	OUT_TRANSLATED,
	OUT_KEPT_BY_POLICY,
	OUT_KEPT_SOURCE, /* not from a source of the policy */
	OUT_KEPT_DEVICE, /* not through a device of the policy */
	OUT_KEPT_REPLY, /* of a connection that came from outside */
	OUT_KEPT_SCOPE, /* multicast, broadcast, link-local: it goes no further than the link */
	OUT_KEPT_DRAINING,
	OUT_HANDED_OVER, /* a drained flow that connection tracking translates by now */
	OUT_ERROR_TRANSLATED, /* an ICMP error about a translated flow */
	OUT_DROPPED_PORTS, /* no free port, and for protocols without ports no free address */
	OUT_DROPPED_ADDRESS, /* the device has no address of the family */
	OUT_DROPPED_PROTOCOL, /* its checksum or its content speaks of the address */
	OUT_DROPPED_ICMP, /* neither echo nor an error about a flow that is known */
	OUT_DROPPED_FRAGMENT, /* its first part was not seen */
	OUT_DROPPED_TABLE, /* the flow could not be recorded */
	OUT_DROPPED_MALFORMED,
	IN_TRANSLATED,
	IN_ERROR_TRANSLATED,
	IN_PASSED,
	IN_DROPPED_MALFORMED,
	FLOWS_TRANSLATED, /* new ones; from here on flows are counted, before it packets */
	FLOWS_KEPT,
	FLOWS_FROM_OUTSIDE,
	IN_PASSED_FRAGMENT, /* a packet again: its first part had not come, so nothing knows whose */
	OUT_DROPPED_RACE, /* a packet: another CPU was making this very flow's place another's */
	OUT_KEPT_OWN, /* of the node itself, from before the programs were there */
	FLOWS_OWN, /* of the node itself */
	FLOWS_UNRECORDED, /* there was no room to remember that it is kept, or where it is */
	FLOWS_COLLECTED, /* expired, and removed */
	FLOWS_SHED, /* removed to make room: one way, or half open, and idle for seconds */
	OUTCOMES,
};

/* Room in the map of counters: one more outcome must not make it another map at an upgrade. */
#define MOST_OUTCOMES 64
_Static_assert(OUTCOMES <= MOST_OUTCOMES, "the map of counters is too small");

/*
 * Flows that the agent lists, as the packet on which `collect` or `index_flows` runs: this, and
 * then their keys.
 */
struct collection {
	__u32 of_kept; /* whether they are in `kept`, and not in `flows` */
	__u32 count;
};

#define MOST_COLLECTED 80 /* what fits into a packet of one small page */

/* What the programs keep in mind about the tables of flows. */
struct tables {
	__u64 relief_of_flows, relief_of_kept; /* from when on room may be made, in ns */
};

/* Tables of which it is counted where entries are, see `filters`. */
enum filter {
	OF_MOVED,
	OF_KEPT,
	FILTERS,
};

#define FILTER_SIZE (1 << 16)

/* A destination to which no port was free. */
struct exhausted_key {
	struct address remote;
	__be16 remote_port;
	__u8 protocol;
	__u8 family;
};

#endif
