/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tables of flows: how one gets its place, and is found there.
 *
 * A flow that leaves with an address of the node has one entry, under what its replies look
 * like. Its port is given by a keyed hash of what it was before; so the way out is found
 * again by computing, and seen to be right by the owner that the entry names. Where that
 * first place was another's, the flow is at a later one, and `moved` says where.
 *
 * An entry that lives is never removed and never gets another owner. One that has expired is
 * given to the next flow that wants its place as it is, `GRACE` seconds later: a program that
 * saw it alive has that long to copy the owner. Both are claimed by compare-and-exchange of
 * `life` with TAKING, so of two CPUs one has it.
 */
#ifndef IPMASQ_FLOWS_H
#define IPMASQ_FLOWS_H

#include <linux/errno.h>
#include "life.h"

/* Places that a new flow tries: some at random, then one after the other. */
#define SCATTERED  16
#define IN_ORDER   128
#define FIRST_PORT 1024
#define LAST_PORT  65535
#define ALL_PORTS  (LAST_PORT - FIRST_PORT + 1)

#define ROTATED(x, by) ((x) << (by) | (x) >> (64 - (by)))

#define SIPHASH_ROUND(v)                                                       \
	do {                                                                   \
		v[0] += v[1], v[2] += v[3];                                    \
		v[1] = ROTATED(v[1], 13) ^ v[0], v[3] = ROTATED(v[3], 16) ^ v[2]; \
		v[0] = ROTATED(v[0], 32);                                      \
		v[2] += v[1], v[0] += v[3];                                    \
		v[1] = ROTATED(v[1], 17) ^ v[2], v[3] = ROTATED(v[3], 21) ^ v[0]; \
		v[2] = ROTATED(v[2], 32);                                      \
	} while (0)

#define SIPHASH_WORD(v, word)        \
	do {                         \
		__u64 w = (word);    \
		v[3] ^= w;           \
		SIPHASH_ROUND(v);    \
		v[0] ^= w;           \
	} while (0)

/* SipHash-1-3 of what a flow is before translation. */
__noinline __u64 flow_hash(const struct flow_key *key)
{
	if (!key)
		return 0;

	__u32 zero = 0;
	const struct node *of_node = bpf_map_lookup_elem(&node, &zero);
	__u64 first = of_node ? of_node->secret[0] : 0, second = of_node ? of_node->secret[1] : 0;
	__u64 v[4] = {
		first ^ 0x736f6d6570736575,
		second ^ 0x646f72616e646f6d,
		first ^ 0x6c7967656e657261,
		second ^ 0x7465646279746573,
	};

	SIPHASH_WORD(v, (__u64)key->local.word[0] << 32 | key->remote.word[0]);
	if (key->family == IPV6) {
		SIPHASH_WORD(v, (__u64)key->local.word[1] << 32 | key->remote.word[1]);
		SIPHASH_WORD(v, (__u64)key->local.word[2] << 32 | key->remote.word[2]);
		SIPHASH_WORD(v, (__u64)key->local.word[3] << 32 | key->remote.word[3]);
	}
	SIPHASH_WORD(v, (__u64)key->protocol << 32 | (__u32)key->local_port << 16 |
				key->remote_port);
	v[2] ^= 0xff;
	SIPHASH_ROUND(v);
	SIPHASH_ROUND(v);
	SIPHASH_ROUND(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static __always_inline __u32 *filter_of(enum filter filter, __u64 hash)
{
	__u32 index = filter * FILTER_SIZE + (__u32)(hash >> 48);

	return bpf_map_lookup_elem(&filters, &index);
}

/* Whether a table may have an entry with a hash. */
static __always_inline bool may_have(enum filter filter, __u64 hash)
{
	const __u32 *entries = filter_of(filter, hash);

	return !entries || READ_ONCE(*entries);
}

/* An entry is counted before it is there, and until it is gone. */
static __always_inline void count_entry(enum filter filter, const struct flow_key *key, int by)
{
	__u32 *entries = filter_of(filter, flow_hash(key));

	if (entries)
		__sync_fetch_and_add(entries, by);
}

/* Whether the ranges of a policy have a port. */
__noinline int in_ranges(__u32 slot, __u16 port)
{
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);

	if (!in_force)
		return false;
	for (__u32 n = 0; n < MAX_PORT_RANGES; n++) {
		if (n >= in_force->port_ranges)
			break;
		if (port >= in_force->ports[n].first && port <= in_force->ports[n].last)
			return true;
	}
	return false;
}

/* The port of the ranges of a policy before which there are that many others. */
__noinline int port_of_ranges(__u32 slot, __u32 before)
{
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);

	if (!in_force)
		return LAST_PORT;
	for (__u32 n = 0; n < MAX_PORT_RANGES; n++) {
		__u32 size = in_force->ports[n].last - in_force->ports[n].first + 1;

		if (n >= in_force->port_ranges)
			break;
		if (before < size)
			return in_force->ports[n].first + before;
		before -= size;
	}
	return in_force->ports[0].first;
}

/* Whether a policy lets a port be used. */
static __always_inline bool allowed(const struct settings *in_force, __u32 slot, __be16 port)
{
	return !in_force->port_ranges || in_ranges(slot, bpf_ntohs(port));
}

/* What gives a flow its places: the same at each of its packets. */
struct choice {
	__u64 hash;
	__be16 own;	/* its own port, or identifier */
	__be16 first;	/* the port of its first place */
	bool prefers_own;
	bool any;	/* false where nothing but its own will do */
	bool query;	/* of ICMP: no range is meant for its identifiers */
};

static __always_inline void choose(struct choice *choice, const struct packet *p,
				   const struct settings *in_force, __u32 slot, bool own_address)
{
	choice->own = p->source_port;
	choice->any = p->kind == PORTS;
	choice->query = p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6;
	/* The port of the node's own packets is no pod's to guess. */
	choice->prefers_own = !choice->any || choice->query;
	if (!choice->prefers_own && (own_address || !(in_force->flags & RANDOM_FULLY)))
		choice->prefers_own = allowed(in_force, slot, p->source_port);
}

/* How many ports a flow may have. */
static __always_inline __u32 ports_of(const struct choice *choice, const struct settings *in_force)
{
	if (choice->query)
		return 65536;
	return in_force->port_ranges && in_force->port_count ? in_force->port_count : ALL_PORTS;
}

/* The port of the nth place. */
static __always_inline __be16 nth_port(const struct choice *choice, const struct settings *in_force,
				       __u32 slot, __u32 n)
{
	__u32 ports = ports_of(choice, in_force), low = choice->hash, high = choice->hash >> 32;
	__u32 left;

	if (!choice->any)
		return choice->own;
	if (choice->prefers_own && !n--)
		return choice->own;
	left = (__u64)(low + (n < SCATTERED ? n : 0) * (high | 1)) * ports >> 32;
	if (n >= SCATTERED) {
		left += n - SCATTERED + 1;
		left = left >= ports ? left % ports : left;
	}
	if (choice->query)
		return bpf_htons(left);
	if (!in_force->port_ranges || !in_force->port_count)
		return bpf_htons(FIRST_PORT + left);
	return bpf_htons(port_of_ranges(slot, left));
}

enum claimed {
	CLAIMED,
	TAKEN, /* the place is another flow's */
	FULL,  /* it is nobody's, and yet it did not go into the table */
	RACED, /* another CPU is about to give it to somebody, or has just removed it */
};

static __always_inline struct tables *what_of_tables(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tables, &zero);
}

/*
 * Remove what says where a flow is; `key`, a copy of `at`, is another one afterwards. Where
 * the same packets have begun anew at another place it says that, and stays.
 */
static __always_inline void forget_place(const struct flow_key *at, struct flow_key *key,
					 const struct flow *flow)
{
	const struct place *place;

	key->local = flow->address;
	key->local_port = flow->port;
	place = bpf_map_lookup_elem(&moved, key);
	if (!place || !same(&place->address, &at->local) || place->port != at->local_port)
		return;
	if (!bpf_map_delete_elem(&moved, key))
		count_entry(OF_MOVED, key, -1);
}

/*
 * Have a flow found by what its packets are before translation; `key` is another one afterwards.
 * Returns 0, or -1 where there is no room for that.
 */
static __always_inline int index_flow(struct flow_key *key, struct flow *flow)
{
	struct place place = {.address = key->local, .port = key->local_port};
	__u64 before = READ_ONCE(flow->life), found;

	key->local = flow->address;
	key->local_port = flow->port;
	if (STATE(before) & TAKING)
		return 0;
	count_entry(OF_MOVED, key, 1);
	if (bpf_map_update_elem(&moved, key, &place, BPF_NOEXIST)) {
		count_entry(OF_MOVED, key, -1);
		if (bpf_map_update_elem(&moved, key, &place, BPF_EXIST))
			return -1;
	}
	found = __sync_val_compare_and_swap(&flow->life, before, before | LIFE(INDEXED, 0));
	if (found != before) /* a packet of it came meanwhile; another one in between is lost */
		__sync_val_compare_and_swap(&flow->life, found, found | LIFE(INDEXED, 0));
	return 0;
}

/*
 * Whether an entry is still the one of a key. What was removed is used again at once, for any
 * other key; what has just been given life, or is being taken, is not removed.
 */
static __always_inline bool is_at(const struct flow_key *key, const struct flow *held)
{
	return bpf_map_lookup_elem(&flows, key) == held;
}

/*
 * Put a flow at its key, if nobody lives there. No part of its callers: of the 512 bytes of stack
 * that a chain of calls may take, each frame in Linux 6.1 counts as a multiple of 32.
 */
static __noinline enum claimed claim(const struct flow_key *key, const struct flow *flow,
					  __u32 now)
{
	long error = bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST);
	struct flow *held;
	__u64 life;

	if (!error)
		return CLAIMED;
	held = bpf_map_lookup_elem(&flows, key);
	if (!held)
		return error == -EEXIST ? RACED : FULL;
	life = READ_ONCE(held->life);
	if (STATE(life) & TAKING)
		life = READ_ONCE(held->life);
	if (STATE(life) & TAKING)
		return RACED;
	if (same(&held->address, &flow->address) && held->port == flow->port) {
		/* Its own: the first packet once more, or on another CPU, or a flow that begins anew. */
		__u64 anew = flow->life | LIFE(STATE(life) & INDEXED, 0);
		__u64 found = __sync_val_compare_and_swap(&held->life, life, anew);

		if (STATE(found) & TAKING)
			return RACED;
		if (!is_at(key, held)) { /* another flow of the same owner's: as it was */
			if (found == life)
				__sync_val_compare_and_swap(&held->life, anew, life);
			return RACED;
		}
		/* Of two that found it expired the other one may have been faster. */
		if (found != life &&
		    (!same(&held->address, &flow->address) || held->port != flow->port))
			return TAKEN;
		WRITE_ONCE(held->ifindex, flow->ifindex);
		return CLAIMED;
	}
	if (!expired(life, now, GRACE))
		return TAKEN;
	if (__sync_val_compare_and_swap(&held->life, life, LIFE(TAKING, now)) != life)
		return RACED;
	if (!is_at(key, held)) {
		WRITE_ONCE(held->life, life);
		return RACED;
	}
	if (STATE(life) & INDEXED) {
		struct flow_key untranslated = *key;

		forget_place(key, &untranslated, held);
	}
	held->address = flow->address;
	held->port = flow->port;
	held->ifindex = flow->ifindex;
	__sync_lock_test_and_set(&held->life, flow->life); /* after what it vouches for */
	return CLAIMED;
}

struct claiming {
	struct flow_key key; /* its local port is chosen here */
	struct flow flow;
	struct choice choice;
	__u32 slot;
	__u32 now;
	enum claimed claimed;
};

static long claim_nth(__u32 nth, void *context)
{
	struct claiming *claiming = context;
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &claiming->slot);

	if (!in_force)
		return 1;
	claiming->key.local_port = nth_port(&claiming->choice, in_force, claiming->slot, nth);
	claiming->claimed = claim(&claiming->key, &claiming->flow, claiming->now);
	return claiming->claimed != TAKEN;
}

#endif
