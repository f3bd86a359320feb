/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps, and the few questions that are asked of them as they are. */
#ifndef IPMASQ_MAPS_H
#define IPMASQ_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "masq.h"

#define FLOWS_DEFAULT	  (1 << 19) /* the agent sets others before loading */
#define KEPT_DEFAULT	  (1 << 18)
#define FRAGMENTS_DEFAULT (1 << 13)
#define PREFIXES_DEFAULT  (1 << 20)
#define ADDRESSES_MOST	  (1 << 16)

struct decisions_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, PREFIXES_DEFAULT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix));
	__uint(value_size, sizeof(__u8)); /* enum verdict */
};

struct sources_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, PREFIXES_DEFAULT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix));
	__uint(value_size, sizeof(__u8)); /* nothing: to be in it is what counts */
};

struct fixed_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, PREFIXES_DEFAULT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix));
	__uint(value_size, sizeof(struct address));
};

/* Blocks of /16 and /24 whose parts differ; made for as many as there are, and some more. */
struct details_hash {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(__u32)); /* BLOCK_NUMBER */
	__uint(value_size, sizeof(struct block));
};

/* A policy is filled into the tries that are not in force; then `control` points to them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__array(values, struct decisions_trie);
} decisions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__array(values, struct sources_trie);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__array(values, struct fixed_trie);
} fixed SEC(".maps");

/* The bitmap of IPv4: each slot's blocks of /8, by slot and then number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS * PARTS);
	__type(key, __u32);
	__type(value, struct block);
} outline SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__array(values, struct details_hash);
} details SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FAMILIES);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* ifindex */
	__type(value, struct device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} node SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ADDRESSES_MOST);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct own_address);
	__type(value, __u8); /* nothing: to be in it is what counts */
} addresses SEC(".maps");

/*
 * Tables that never forget what lives: no LRU, which would, for the sake of whatever comes.
 * What has expired is removed by `collect`; nothing else removes anything but to make room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS_DEFAULT);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Flows that keep their source: by policy, or as replies to what came from outside. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEPT_DEFAULT);
	__type(key, struct flow_key);
	__type(value, struct kept);
} kept SEC(".maps");

/* By the key that its packets would have untranslated, where a flow is not at its first place. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS_DEFAULT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct place);
} moved SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_DEFAULT);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAMILIES * MOST_OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, struct exhausted_key);
	__type(value, __u64);
} exhausted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tables);
} tables SEC(".maps");

struct begun_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16); /* whoever observes makes one of another size */
};

/* Empty as long as nobody observes: then a new flow costs a look at each, and nothing more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, OBSERVERS);
	__type(key, __u32);
	__array(values, struct begun_ring);
} observers SEC(".maps");

/* How many flows an observer was not told of, as there was no room in its ring. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OBSERVERS);
	__type(key, __u32);
	__type(value, __u64);
} untold SEC(".maps");

/*
 * How many entries of a table have a hash that begins so: with none there is nothing to look
 * up. A look-up of what is not there costs a new flow more than all else, as its bucket is in
 * no cache; these fit into one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FILTERS * FILTER_SIZE);
	__type(key, __u32);
	__type(value, __u32);
} filters SEC(".maps");

/* What other CPUs write meanwhile is read once and written once. */
#define READ_ONCE(x)	 (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
#define barrier()	 asm volatile("" ::: "memory")

/*
 * Each CPU has counters of its own. Where the kernel lets one packet interrupt another's
 * program on the same CPU (PREEMPT_RT), one of a million counts may be lost.
 */
static __always_inline void count_more(__u8 family, enum outcome outcome, __u64 by)
{
	__u32 index = family * MOST_OUTCOMES + outcome;
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += by;
}

static __always_inline void count(__u8 family, enum outcome outcome)
{
	count_more(family, outcome, 1);
}

/* Seconds since the machine was started. */
static __always_inline __u32 seconds(void)
{
	return bpf_ktime_get_coarse_ns() / 1000000000;
}

#endif
