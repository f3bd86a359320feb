/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What makes room in the tables of flows, and when. */
#ifndef IPMASQ_ROOM_H
#define IPMASQ_ROOM_H

#include "flows.h"

#define SHED_IDLE 2 /* seconds without a packet, for one that may go where room is needed */
#define SHED_AT_ONCE (1 << 13)
#define RELIEF_SHARE 16 /* of the time, one part for looking for room */
#define LONG_AFTER (60 * 1000000000ULL)

/* What is to go from the tables, and what went. */
struct clearing {
	__u32 now;
	bool sheds; /* also what lives, if it may never be missed */
	__u32 gone;
	__u32 collected[FAMILIES], shed[FAMILIES];
};

/* Whether an entry is to go: it has expired, or room is needed and it may never be missed. */
static __always_inline bool goes(struct clearing *clearing, const struct flow_key *key, __u64 *life)
{
	__u64 before = READ_ONCE(*life);
	__u32 state = STATE(before), now = clearing->now, whole = lifetime(key->protocol, state);
	bool ended = expired(before, now, GRACE);

	if (state & TAKING)
		return false;
	if (!ended) {
		/* Idle, and one way or half open: never a connection. */
		if (!clearing->sheds || whole > TCP_OPENING ||
		    (__s32)(EXPIRES(before) - now) > (__s32)whole - SHED_IDLE)
			return false;
	}
	if (__sync_val_compare_and_swap(life, before, LIFE(state | TAKING, now)) != before)
		return false;
	if (ended)
		clearing->collected[key->family & 1]++;
	else
		clearing->shed[key->family & 1]++;
	clearing->gone++;
	return true;
}

static __always_inline void clear_flow(struct clearing *clearing, const struct flow_key *of,
				       struct flow *flow)
{
	struct flow_key key = *of; /* one copy for both: of stack there is little */

	if (!goes(clearing, &key, &flow->life))
		return;
	if (STATE(flow->life) & INDEXED) {
		forget_place(of, &key, flow);
		key.local = of->local;
		key.local_port = of->local_port;
	}
	bpf_map_delete_elem(&flows, &key);
}

static __always_inline void clear_kept(struct clearing *clearing, const struct flow_key *of,
				       struct kept *held)
{
	struct flow_key key = *of;

	if (goes(clearing, &key, &held->life) && !bpf_map_delete_elem(&kept, &key))
		count_entry(OF_KEPT, &key, -1);
}

static long clear_each_flow(void *map, const void *key, void *value, void *context)
{
	struct clearing *clearing = context;

	clear_flow(clearing, key, value);
	return clearing->gone >= SHED_AT_ONCE;
}

static long clear_each_kept(void *map, const void *key, void *value, void *context)
{
	struct clearing *clearing = context;

	clear_kept(clearing, key, value);
	return clearing->gone >= SHED_AT_ONCE;
}

static __always_inline void count_cleared(const struct clearing *clearing)
{
	for (__u8 family = 0; family < FAMILIES; family++) {
		count_more(family, FLOWS_COLLECTED, clearing->collected[family]);
		count_more(family, FLOWS_SHED, clearing->shed[family]);
	}
}

/*
 * Room is made in a full table by the packet that finds it so: the agent, which collects all
 * the time, may be gone, or a scan faster than it. What else comes to this CPU waits for that;
 * so little goes at once, and the longer it took the later it is done again.
 */
static __always_inline bool may_relieve(__u64 *due, __u64 clock)
{
	__u64 next = READ_ONCE(*due);

	return clock >= next && __sync_val_compare_and_swap(due, next, clock + LONG_AFTER) == next;
}

/* True where something went. */
static __always_inline bool relieved(__u64 *due, __u64 began, const struct clearing *clearing)
{
	__u64 ended = bpf_ktime_get_ns();

	WRITE_ONCE(*due, ended + (ended - began) * (RELIEF_SHARE - 1));
	count_cleared(clearing);
	return clearing->gone;
}

__noinline int make_room_for_flow(__u32 now)
{
	struct clearing clearing = {.now = now, .sheds = true};
	struct tables *of_tables = what_of_tables();
	__u64 clock = bpf_ktime_get_ns();

	if (!of_tables || !may_relieve(&of_tables->relief_of_flows, clock))
		return false;
	bpf_for_each_map_elem(&flows, clear_each_flow, &clearing, 0);
	return relieved(&of_tables->relief_of_flows, clock, &clearing);
}

__noinline int make_room_for_kept(__u32 now)
{
	struct clearing clearing = {.now = now, .sheds = true};
	struct tables *of_tables = what_of_tables();
	__u64 clock = bpf_ktime_get_ns();

	if (!of_tables || !may_relieve(&of_tables->relief_of_kept, clock))
		return false;
	bpf_for_each_map_elem(&kept, clear_each_kept, &clearing, 0);
	return relieved(&of_tables->relief_of_kept, clock, &clearing);
}

/* What `collect` and `index_flows` are at: a packet that lists keys. */
struct collecting {
	struct __sk_buff *skb;
	struct clearing clearing;
	bool of_kept;
};

static __always_inline bool nth_listed(const struct collecting *listed, __u32 nth,
				       struct flow_key *key)
{
	return !bpf_skb_load_bytes(listed->skb, sizeof(struct collection) + nth * sizeof(*key),
				   key, sizeof(*key));
}

static long collect_nth(__u32 nth, void *context)
{
	struct collecting *collecting = context;
	struct flow_key key;

	if (!nth_listed(collecting, nth, &key))
		return 1;
	if (collecting->of_kept) {
		struct kept *held = bpf_map_lookup_elem(&kept, &key);

		if (held)
			clear_kept(&collecting->clearing, &key, held);
	} else {
		struct flow *flow = bpf_map_lookup_elem(&flows, &key);

		if (flow)
			clear_flow(&collecting->clearing, &key, flow);
	}
	return 0;
}

#endif
