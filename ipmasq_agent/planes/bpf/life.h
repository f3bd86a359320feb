/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long flows live, and what belongs to whom. */
#ifndef IPMASQ_LIFE_H
#define IPMASQ_LIFE_H

#include "policy.h"

/* Seconds without a packet; close to those of net/netfilter/nf_conntrack_proto_*.c. */
#define TCP_OPENING	60
#define TCP_ESTABLISHED (5 * 24 * 3600)
#define TCP_CLOSING	120
#define TCP_RESET	10
#define UDP_ONE_WAY	30
#define UDP_BOTH_WAYS	120
#define ICMP_QUERY	30
#define OTHER_PROTOCOL	600
#define FRAGMENT_LIFE	3

#define GRACE	 2

static __always_inline bool expired(__u64 life, __u32 now, __u32 grace)
{
	return (__s32)(now - EXPIRES(life)) >= (__s32)grace;
}

static __always_inline bool alive(__u64 life, __u32 now)
{
	return !expired(life, now, 0) && !(STATE(life) & TAKING);
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
		return both && state & CONFIRMED ? TCP_ESTABLISHED : TCP_OPENING;
	case IPPROTO_UDP:
		return both ? UDP_BOTH_WAYS : UDP_ONE_WAY;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return ICMP_QUERY;
	default:
		return OTHER_PROTOCOL;
	}
}

/* The state of a flow once a packet of it was seen on a side. */
static __always_inline __u32 advanced(__u32 state, const struct packet *p, bool outward)
{
	bool answered = state & (outward ? SEEN_INWARD : SEEN_OUTWARD);
	bool by_opener = outward == !(state & FROM_OUTSIDE);
	bool first = !(state & (SEEN_OUTWARD | SEEN_INWARD));

	state |= outward ? SEEN_OUTWARD : SEEN_INWARD;
	if (p->protocol != IPPROTO_TCP || p->part == LATER)
		return state;
	if (p->tcp_flags & TCP_RST)
		return state | (outward ? RESET_OUTWARD : RESET_INWARD);
	/* Whether it fits is not looked at: that its sender goes on shows that it was forged. */
	state &= ~(outward ? RESET_OUTWARD : RESET_INWARD);
	if (p->tcp_flags & TCP_FIN)
		state |= outward ? FIN_OUTWARD : FIN_INWARD;
	if (accepts(p) && !by_opener) {
		state &= (1 << NUMBER_SHIFT) - 1;
		state |= ACCEPTED | (__u32)p->number << NUMBER_SHIFT;
	}
	if (p->tcp_flags & TCP_SYN || !by_opener)
		return state;
	/* Whoever forges a SYN does not get the answer, and has to guess what to acknowledge. */
	if (state & ACCEPTED ? p->number == state >> NUMBER_SHIFT : answered || first)
		state |= CONFIRMED; /* also where the flow is met in the middle */
	return state;
}

/* One attempt of `touch`; false where another CPU was faster, and `before` is what it wrote. */
static __always_inline bool try_to_touch(__u64 *life, __u64 *before, const struct packet *p,
					 bool outward, __u32 now)
{
	__u32 state = advanced(STATE(*before), p, outward);
	__u64 after = LIFE(state, now + lifetime(p->protocol, state)), found;

	if (after == *before || STATE(*before) & TAKING)
		return true;
	found = __sync_val_compare_and_swap(life, *before, after);
	if (found == *before)
		return true;
	*before = found;
	return false;
}

/* Whether a TCP connection is open at both ends, as far as was seen. */
static __always_inline bool goes_on(__u32 state)
{
	return (state & (CONFIRMED | FIN_OUTWARD | FIN_INWARD | RESET)) == CONFIRMED;
}

/* Take a packet of a flow into account. Nothing is written while nothing changes. */
static __always_inline void touch(__u64 *life, const struct packet *p, bool outward, __u32 now)
{
	__u64 before = READ_ONCE(*life);

	/* No loop: Linux 6.1 does not take all that clang makes of one. */
	if (!try_to_touch(life, &before, p, outward, now) &&
	    !try_to_touch(life, &before, p, outward, now))
		try_to_touch(life, &before, p, outward, now);
}

/* Let a flow end: its place is free once everybody who saw it alive is done. */
static __always_inline void let_end(__u64 *life, __u32 now)
{
	__u64 before = READ_ONCE(*life);

	if (!(STATE(before) & TAKING))
		__sync_val_compare_and_swap(life, before, LIFE(STATE(before), now));
}

/* The key of what a packet on its way out is part of, if it leaves as it is. */
static __always_inline void outward_key(struct flow_key *key, const struct packet *p)
{
	key->remote = p->destination;
	key->local = p->source;
	key->remote_port = p->destination_port;
	key->local_port = p->source_port;
	key->protocol = p->protocol;
	key->family = p->family;
	key->pad[0] = key->pad[1] = 0;
}

/* The key of what a packet that comes in is part of. */
static __always_inline void inward_key(struct flow_key *key, const struct packet *p)
{
	key->remote = p->source;
	key->local = p->destination;
	key->remote_port = p->source_port;
	key->local_port = p->destination_port;
	key->protocol = p->protocol;
	key->family = p->family;
	key->pad[0] = key->pad[1] = 0;
}

/*
 * The life of a flow, if it lives and belongs to whoever sent this packet outward; else 0.
 * Life is read first: while that goes on, and for GRACE after it, the owner is the same.
 */
static __always_inline __u64 life_of(const struct flow *flow, const struct packet *p, __u32 now)
{
	__u64 life = READ_ONCE(flow->life);

	barrier();
	return alive(life, now) && same(&flow->address, &p->source) &&
			       flow->port == p->source_port
		       ? life
		       : 0;
}

#endif
