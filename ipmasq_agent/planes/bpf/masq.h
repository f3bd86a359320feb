/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the eBPF program and the agent share: keys, values and numbers of the maps.
 *
 * ipmasq_agent/planes/bpf/layout.py says the same in Python; a test compares the two by
 * the BTF of the compiled program. Pinned maps of another size are never taken for these:
 * libbpf refuses them.
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

/* Bits of settings.flags. */
#define MANAGED		 (1 << 0) /* there is a policy: without it every packet passes */
#define ONLY_SOURCES	 (1 << 1) /* only packets from a prefix in the trie of sources */
#define FIXED_SOURCES	 (1 << 2) /* some destinations have a source address of their own */
#define RANDOM_FULLY	 (1 << 3) /* do not try the pod's own port first */
#define ONLY_DEVICES	 (1 << 4) /* the policy names devices: told to readers only */
#define LOCAL_TOO	 (1 << 5) /* also packets to the node itself */
#define DRAINING	 (1 << 6) /* flows there are go on, new ones are none of ours */

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

/* A device with our program on it; the key is its ifindex. */
struct device {
	struct address source[FAMILIES]; /* what masquerading gives packets that leave here */
	__u8 has_source[FAMILIES];
	__u8 egress[FAMILIES]; /* bit n: in generation n it is a device of the policy */
	__u8 link_header; /* bytes before the IP header: 14, or 0 where there is none */
	__u8 loopback;	  /* all that leaves here is for the node itself */
	__u8 pad[2];
};

/* Which way packets with these addresses go: from here to the outside, or back. */
enum side {
	OUTWARD, /* before translation */
	INWARD, /* a reply, before it is translated back */
};

struct flow_key {
	struct address source, destination;
	__be16 source_port, destination_port; /* ICMP echo: its identifier, and 0 */
	__u8 protocol;
	__u8 family;
	__u8 side;
	__u8 pad;
};

/* Bits of flow.state. */
#define TRANSLATED	(1 << 0) /* else it keeps its source */
#define FROM_OUTSIDE	(1 << 1) /* the first packet came in */
#define SEEN_OUTWARD	(1 << 2)
#define SEEN_INWARD	(1 << 3)
#define FIN_OUTWARD	(1 << 4)
#define FIN_INWARD	(1 << 5)
#define RESET		(1 << 6)

/*
 * A flow. One that is translated is there twice: OUTWARD with the address and port that its
 * packets get, INWARD with those of the pod that its replies are for.
 */
struct flow {
	struct address address;
	__be16 port;
	__u16 pad;
	__u32 state;   /* of the OUTWARD one; the INWARD one has TRANSLATED and SEEN_INWARD */
	__u32 expires; /* seconds of CLOCK_MONOTONIC */
};

/* Fragments but the first have no ports: the first one leaves them here. */
struct fragment_key {
	struct address source, destination;
	__be32 id;
	__u8 protocol;
	__u8 family;
	__u8 side;
	__u8 pad;
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
	FLOWS_TRANSLATED, /* new ones; the rest counts packets */
	FLOWS_KEPT,
	FLOWS_FROM_OUTSIDE,
	OUTCOMES,
};

/* Room in the map of counters: one more outcome must not make it another map at an upgrade. */
#define MOST_OUTCOMES 64
_Static_assert(OUTCOMES <= MOST_OUTCOMES, "the map of counters is too small");

/* What a sweep through the flows found, see `sweep`. */
struct swept {
	__u64 removed;
	__u64 alive[FAMILIES]; /* OUTWARD */
	__u64 translated[FAMILIES]; /* to another address or port */
};

#endif
