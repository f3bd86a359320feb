// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The maps of the first layout of the eBPF plane, by their names, kinds and sizes, and
 * programs of its names that use them and let every packet pass.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define SLOTS 4

#define MAP(name, kind, keys, values, most)        \
	struct {                                   \
		__uint(type, kind);                \
		__uint(key_size, keys);            \
		__uint(value_size, values);        \
		__uint(max_entries, most);         \
	} name SEC(".maps")

#define TRIES(name, values_of)                              \
	struct name##_trie {                                \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);        \
		__uint(max_entries, 1 << 20);               \
		__uint(map_flags, BPF_F_NO_PREALLOC);       \
		__uint(key_size, 20);                       \
		__uint(value_size, values_of);              \
	};                                                  \
	struct {                                            \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);   \
		__uint(max_entries, SLOTS);                 \
		__type(key, __u32);                         \
		__array(values, struct name##_trie);        \
	} name SEC(".maps")

TRIES(decisions, 1);
TRIES(sources, 1);
TRIES(fixed, 16);
MAP(settings, BPF_MAP_TYPE_ARRAY, 4, 80, SLOTS);
MAP(control, BPF_MAP_TYPE_ARRAY, 4, 4, 2);
MAP(devices, BPF_MAP_TYPE_HASH, 4, 40, 1024);
MAP(flows, BPF_MAP_TYPE_LRU_HASH, 40, 28, 1 << 12);
MAP(fragments, BPF_MAP_TYPE_LRU_HASH, 40, 8, 1 << 13);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 128);
MAP(swept, BPF_MAP_TYPE_ARRAY, 4, 40, 1);

/* Each map is used: so the kernel counts it as the program's. */
static __always_inline int ask(void)
{
	__u64 key[5] = {};

	bpf_map_lookup_elem(&decisions, key);
	bpf_map_lookup_elem(&sources, key);
	bpf_map_lookup_elem(&fixed, key);
	bpf_map_lookup_elem(&settings, key);
	bpf_map_lookup_elem(&control, key);
	bpf_map_lookup_elem(&devices, key);
	bpf_map_lookup_elem(&flows, key);
	bpf_map_lookup_elem(&fragments, key);
	bpf_map_lookup_elem(&counters, key);
	bpf_map_lookup_elem(&swept, key);
	return -1;
}

SEC("tc")
int outward(struct __sk_buff *skb)
{
	return ask();
}

SEC("tc")
int inward(struct __sk_buff *skb)
{
	return ask();
}

SEC("tc")
int sweep(struct __sk_buff *skb)
{
	return ask();
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
