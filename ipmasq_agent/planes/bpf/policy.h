/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the policy in force says about the first packet of a flow. */
#ifndef IPMASQ_POLICY_H
#define IPMASQ_POLICY_H

#include "packet.h"

struct decision {
	struct address source; /* what it gets, where has_source */
	enum outcome kept;     /* why, where it is not masqueraded */
	bool masquerade;
	bool has_source;
	bool fixed; /* it is the policy that says so, not the device */
};

/* The slot of a family that is in force: all that one packet asks comes from it. */
static __always_inline __u32 slot_in_force(__u8 family)
{
	__u32 index = family;
	struct control *now = bpf_map_lookup_elem(&control, &index);

	return SLOT(family & 1, now ? now->generation & 1 : 0);
}

/* Look an address up in the trie of a slot; NULL where no prefix has it. */
static __always_inline void *look_up(void *tries, __u32 slot, __u8 family,
				     const struct address *address)
{
	struct prefix whole = {.length = family == IPV4 ? 32 : 128, .address = *address};
	void *trie = bpf_map_lookup_elem(tries, &slot);

	return trie ? bpf_map_lookup_elem(trie, &whole) : NULL;
}

static __always_inline __u8 code_of(const struct block *block, __u8 part)
{
	return READ_ONCE(block->codes[part / 4]) >> part % 4 * 2 & 3;
}

/* What the bitmap of a slot says of an address of IPv4: a verdict, or ASK_TRIE. */
static __always_inline __u8 look_up_code(__u32 slot, __u32 address)
{
	__u32 key = slot * PARTS + (address >> 24);
	const struct block *block = bpf_map_lookup_elem(&outline, &key);
	__u8 code = block ? code_of(block, address >> 16) : ASK_TRIE;
	void *blocks;

	if (code != ASK_PART)
		return code;
	blocks = bpf_map_lookup_elem(&details, &slot);
	if (!blocks)
		return ASK_TRIE;
	key = BLOCK_NUMBER(address, 16);
	block = bpf_map_lookup_elem(blocks, &key);
	code = block ? code_of(block, address >> 8) : ASK_TRIE;
	if (code != ASK_PART)
		return code;
	key = BLOCK_NUMBER(address, 24);
	block = bpf_map_lookup_elem(blocks, &key);
	return block ? code_of(block, address) : ASK_TRIE;
}

/* What the policy in a slot says of a destination; 0 where no prefix has it. */
static __always_inline __u8 look_up_verdict(__u32 slot, __u8 family,
					    const struct address *destination)
{
	__u8 code = family == IPV4 ? look_up_code(slot, bpf_ntohl(destination->word[0])) : ASK_TRIE;
	const __u8 *verdict;

	if (code != ASK_TRIE)
		return code;
	verdict = look_up(&decisions, slot, family, destination);
	return verdict ? *verdict : 0;
}

/* Decide by guards, decisions and action of a slot. */
static __noinline int decide(const struct packet *p, const struct device *device, __u32 slot,
			     struct decision *d)
{
	__u8 family = p->family & 1;
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	const struct address *address;

	d->masquerade = false;
	d->has_source = false;
	d->fixed = false;
	d->kept = OUT_KEPT_BY_POLICY;
	if (!in_force || !(in_force->flags & MANAGED))
		return 0;
	if (!(device->egress[family] >> (slot % GENERATIONS) & 1)) {
		d->kept = OUT_KEPT_DEVICE;
		return 0;
	}
	if (in_force->flags & ONLY_SOURCES && !look_up(&sources, slot, family, &p->source)) {
		d->kept = OUT_KEPT_SOURCE;
		return 0;
	}
	if (look_up_verdict(slot, family, &p->destination) != MASQUERADE)
		return 0;
	d->masquerade = true;
	if (in_force->flags & FIXED_SOURCES) {
		address = look_up(&fixed, slot, family, &p->destination);
		if (address) {
			d->source = *address;
			d->has_source = true;
			d->fixed = true;
			return 0;
		}
	}
	d->source = device->source[family];
	d->has_source = device->has_source[family];
	return 0;
}

#endif
