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

/* Decide by guards, decision trie and action of a slot. */
static __noinline int decide(const struct packet *p, const struct device *device, __u32 slot,
			     struct decision *d)
{
	__u8 family = p->family & 1;
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	const struct address *address;
	const __u8 *verdict;

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
	verdict = look_up(&decisions, slot, family, &p->destination);
	if (!verdict || *verdict != MASQUERADE)
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
