/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of flows: how long they live, and how a new one gets a port. */
#ifndef IPMASQ_FLOWS_H
#define IPMASQ_FLOWS_H

#include "policy.h"

/* Seconds without a packet; close to those of net/netfilter/nf_conntrack_proto_*.c. */
#define TCP_OPENING	120
#define TCP_ESTABLISHED (5 * 24 * 3600)
#define TCP_CLOSING	120
#define TCP_RESET	10
#define UDP_ONE_WAY	30
#define UDP_BOTH_WAYS	120
#define ICMP_QUERY	30
#define OTHER_PROTOCOL	600
#define FRAGMENT_LIFE	30

/* How many ports a new flow tries, each at random but the first. */
#define PORT_TRIES	64
#define FIRST_PORT	1024
#define LAST_PORT	65535

static __always_inline bool alive(const struct flow *flow, __u32 now)
{
	return (__s32)(flow->expires - now) > 0;
}

static __always_inline __u32 lifetime(__u8 protocol, __u32 state)
{
	bool both = (state & SEEN_OUTWARD) && (state & SEEN_INWARD);

	switch (protocol) {
	case IPPROTO_TCP:
		if (state & RESET)
			return TCP_RESET;
		if (state & (FIN_OUTWARD | FIN_INWARD))
			return TCP_CLOSING;
		return both ? TCP_ESTABLISHED : TCP_OPENING;
	case IPPROTO_UDP:
		return both ? UDP_BOTH_WAYS : UDP_ONE_WAY;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return ICMP_QUERY;
	default:
		return OTHER_PROTOCOL;
	}
}

/* The state of a flow once a packet of it was seen on the side. */
static __always_inline __u32 advanced(__u32 state, const struct packet *p)
{
	bool outward = p->key.side == OUTWARD;

	state |= outward ? SEEN_OUTWARD : SEEN_INWARD;
	if (p->key.protocol != IPPROTO_TCP || p->part == LATER)
		return state;
	if (p->tcp_flags & TCP_RST)
		return state | RESET;
	/* Sequence numbers are not looked at: traffic after a reset shows that it was forged. */
	state &= ~RESET;
	if (p->tcp_flags & TCP_FIN)
		state |= outward ? FIN_OUTWARD : FIN_INWARD;
	return state;
}

/*
 * Take a packet of an OUTWARD flow into account; true where it lives longer now. That is
 * so about once in a second: only then the other half is looked up too.
 */
static __always_inline bool touch(struct flow *flow, const struct packet *p, __u32 now)
{
	__u32 before = flow->state, state = advanced(before, p);
	__u32 expires = now + lifetime(p->key.protocol, state);

	/*
	 * Bit by bit: other CPUs do so too, and the table may give the entry to another flow
	 * at any moment, which must never become translated, or kept, by this one's state.
	 */
	if (state & ~before)
		__sync_fetch_and_or(&flow->state, state & ~before);
	if (before & ~state)
		__sync_fetch_and_and(&flow->state, ~(before & ~state));
	if (expires == flow->expires)
		return false;
	flow->expires = expires;
	return true;
}

static __always_inline void swap_ends(struct flow_key *to, const struct flow_key *from,
				      enum side side)
{
	to->source = from->destination;
	to->destination = from->source;
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
	to->protocol = from->protocol;
	to->family = from->family;
	to->side = side;
	to->pad = 0;
}

/* The key of a translated flow's INWARD half. */
static __always_inline void inward_key(struct flow_key *key, const struct flow_key *outward,
				       const struct flow *flow)
{
	swap_ends(key, outward, INWARD);
	key->destination = flow->address;
	key->destination_port = flow->port;
}

/*
 * Make sure that replies of a translated flow find their way: the table forgets the least
 * recently used entry when it is full, and it may be one half of a flow.
 * Returns 0, or -1 where the place was taken by another flow meanwhile.
 */
static __noinline int keep_inward(const struct flow_key *outward, const struct flow *flow)
{
	struct flow_key key;
	struct flow back = {
		.address = outward->source,
		.port = outward->source_port,
		.state = TRANSLATED,
		.expires = flow->expires,
	};
	struct flow *held;

	inward_key(&key, outward, flow);
	held = bpf_map_lookup_elem(&flows, &key);
	if (!held)
		return bpf_map_update_elem(&flows, &key, &back, BPF_NOEXIST) ? -1 : 0;
	if (!same(&held->address, &back.address) || held->port != back.port)
		return -1;
	held->expires = back.expires;
	return 0;
}

/* Remove a flow; its way back only while it is its own, not that of one which took it over. */
static __always_inline void forget(const struct flow_key *outward, const struct flow *flow)
{
	struct flow_key key;
	const struct flow *back;

	if (flow->state & TRANSLATED) {
		inward_key(&key, outward, flow);
		back = bpf_map_lookup_elem(&flows, &key);
		if (back && same(&back->address, &outward->source) &&
		    back->port == outward->source_port)
			bpf_map_delete_elem(&flows, &key);
	}
	bpf_map_delete_elem(&flows, outward);
}

/* Whether a socket of the host has the port that replies with this key would come to. */
static __always_inline bool is_of_host(struct __sk_buff *skb, const struct flow_key *reply)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	__u32 size;

	if (reply->family == IPV4) {
		tuple.ipv4.saddr = reply->source.word[0];
		tuple.ipv4.daddr = reply->destination.word[0];
		tuple.ipv4.sport = reply->source_port;
		tuple.ipv4.dport = reply->destination_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &reply->source, sizeof(struct address));
		__builtin_memcpy(tuple.ipv6.daddr, &reply->destination, sizeof(struct address));
		tuple.ipv6.sport = reply->source_port;
		tuple.ipv6.dport = reply->destination_port;
		size = sizeof(tuple.ipv6);
	}
	if (reply->protocol == IPPROTO_TCP)
		socket = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (reply->protocol == IPPROTO_UDP)
		socket = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

/*
 * Whether replies with this key belong to a flow that has the address and port of its own:
 * the host's, to which the policy means nothing. What only came in and was never answered
 * takes no port from anybody.
 */
static __always_inline bool is_of_kept_flow(const struct flow_key *reply, __u32 now)
{
	struct flow_key key;
	const struct flow *held;

	swap_ends(&key, reply, OUTWARD);
	held = bpf_map_lookup_elem(&flows, &key);
	return held && alive(held, now) && (held->state & (TRANSLATED | SEEN_OUTWARD)) == SEEN_OUTWARD;
}

/*
 * A port at random: of the policy's ranges, else of those that need no privilege. In network
 * order. Not static, so that the verifier reads it once and not for each attempt of `claim`.
 */
__noinline __u32 any_port(__u32 slot)
{
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	__u32 random = bpf_get_prandom_u32();
	__u32 left;

	if (!in_force || !in_force->port_ranges || !in_force->port_count)
		return bpf_htons(FIRST_PORT +
				 (__u32)((__u64)random * (LAST_PORT - FIRST_PORT + 1) >> 32));
	left = (__u64)random * in_force->port_count >> 32;
	for (__u32 n = 0; n < MAX_PORT_RANGES; n++) {
		struct port_range range = in_force->ports[n];
		__u32 size = range.last - range.first + 1;

		if (n >= in_force->port_ranges)
			break;
		if (left < size)
			return bpf_htons(range.first + left);
		left -= size;
	}
	return bpf_htons(in_force->ports[0].first);
}

static __always_inline bool allowed(const struct settings *in_force, __be16 port)
{
	__u16 number = bpf_ntohs(port);

	for (__u32 n = 0; n < MAX_PORT_RANGES; n++) {
		if (n >= in_force->port_ranges)
			break;
		if (number >= in_force->ports[n].first && number <= in_force->ports[n].last)
			return true;
	}
	return !in_force->port_ranges;
}

enum claimed {
	CLAIMED,
	TAKEN,	/* the port is another flow's, or a socket's */
	REFUSED, /* it is nobody's, and yet it did not go into the table */
};

/*
 * Record the way back for `reply`, if nobody has the port. Not static either: the verifier
 * reads it once, and not with each of the attempts.
 */
__noinline int claim_port(struct __sk_buff *skb, const struct flow_key *reply,
			  const struct flow *back, __u32 now)
{
	struct flow *held;

	if (!reply || !back) /* for the verifier, which reads this without its callers */
		return REFUSED;
	/* The host's own packets have the address already, and so their port. */
	if (!same(&reply->destination, &back->address) &&
	    (is_of_host(skb, reply) || is_of_kept_flow(reply, now)))
		return TAKEN;
	if (!bpf_map_update_elem(&flows, reply, back, BPF_NOEXIST))
		return CLAIMED;
	held = bpf_map_lookup_elem(&flows, reply);
	if (!held)
		return REFUSED;
	if (same(&held->address, &back->address) && held->port == back->port) {
		held->expires = back->expires;
		return CLAIMED; /* the other half of it was forgotten */
	}
	if (alive(held, now))
		return TAKEN;
	bpf_map_delete_elem(&flows, reply);
	return bpf_map_update_elem(&flows, reply, back, BPF_NOEXIST) ? TAKEN : CLAIMED;
}

/*
 * Record the way back for `reply`, whose destination is the address to use; its port is
 * chosen here.
 */
static __noinline enum claimed claim(struct __sk_buff *skb, const struct packet *p, __u32 slot,
				     struct flow_key *reply, __u32 expires)
{
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	struct flow back = {
		.address = p->key.source,
		.port = p->key.source_port,
		.state = TRANSLATED,
		.expires = expires,
	};
	/* Identifiers of ICMP are not ports: no range is meant for them. */
	bool keep = p->kind != PORTS || p->key.protocol == IPPROTO_ICMP ||
		    p->key.protocol == IPPROTO_ICMPV6;
	enum claimed claimed = REFUSED;
	__u32 now = seconds();

	if (!in_force)
		return REFUSED;
	/* The port of the host's own packets is no pod's to guess. */
	if (!keep && (same(&reply->destination, &p->key.source) ||
		      !(in_force->flags & RANDOM_FULLY)))
		keep = allowed(in_force, p->key.source_port);
	reply->destination_port = p->key.source_port;
	for (int attempt = 0; attempt < PORT_TRIES; attempt++) {
		if (attempt || !keep) {
			if (p->kind != PORTS)
				return claimed;
			reply->destination_port = any_port(slot);
		}
		claimed = claim_port(skb, reply, &back, now);
		if (claimed == CLAIMED)
			break;
	}
	return claimed;
}

#endif
