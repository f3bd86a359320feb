/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What becomes of a packet, counted; and what both directions do to one. */
#ifndef IPMASQ_VERDICT_H
#define IPMASQ_VERDICT_H

#include <linux/pkt_cls.h>
#include "room.h"
#include "translate.h"

#define NEXT TC_ACT_UNSPEC /* to whatever program or rule comes after this one */
#define DROP TC_ACT_SHOT

static __always_inline int passed(const struct packet *p, enum outcome why)
{
	count(p->family, why);
	return NEXT;
}

static __always_inline int dropped(const struct packet *p, enum outcome why)
{
	count(p->family, why);
	return DROP;
}

/* Tell one of those who observe that a flow has begun; NULL for one that keeps its source. */
__noinline int tell_nth(__u32 n, const struct flow_key *key, const struct place *owner)
{
	if (!key)
		return 0;

	void *ring = bpf_map_lookup_elem(&observers, &n);
	struct begun *begun;
	__u64 *missed;

	if (!ring)
		return 0;
	begun = bpf_ringbuf_reserve(ring, sizeof(*begun), 0);
	if (!begun) {
		missed = bpf_map_lookup_elem(&untold, &n);
		if (missed)
			*missed += 1;
		return 0;
	}
	begun->key = *key;
	begun->owner = owner ? owner->address : key->local;
	begun->owner_port = owner ? owner->port : key->local_port;
	begun->pad[0] = begun->pad[1] = begun->pad[2] = 0;
	begun->moment = bpf_ktime_get_ns();
	bpf_ringbuf_submit(begun, BPF_RB_NO_WAKEUP); /* they look by themselves */
	return 0;
}

static __always_inline void tell(const struct flow_key *key, const struct place *owner)
{
	for (__u32 n = 0; n < OBSERVERS; n++)
		tell_nth(n, key, owner);
}

/*
 * The first fragment leaves its ports for the later ones, which find them here.
 * False where they do not.
 */
__noinline int ports_of_fragments(struct packet *p, __u32 now)
{
	if (!p)
		return false;

	struct fragment_key key = {
		.source = p->source,
		.destination = p->destination,
		.id = p->fragment_id,
		.protocol = p->protocol,
		.family = p->family,
	};
	struct fragment ports = {
		.source_port = p->source_port,
		.destination_port = p->destination_port,
		.expires = now + FRAGMENT_LIFE,
	};
	const struct fragment *found;

	if (p->part == FIRST) {
		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
		return true;
	}
	found = bpf_map_lookup_elem(&fragments, &key);
	if (!found || (__s32)(found->expires - now) <= 0)
		return false;
	p->source_port = found->source_port;
	p->destination_port = found->destination_port;
	return true;
}

/* Whether an address is the node's; `device` has the one that it most likely is. */
__noinline int is_own(const struct address *address, const struct device *device, __u8 family)
{
	if (!address || !device)
		return false;

	struct own_address key = {.address = *address, .family = family & 1};

	return (device->has_source[family & 1] && same(address, &device->source[family & 1])) ||
	       bpf_map_lookup_elem(&addresses, &key);
}

/* What cannot be translated never leaves with a source that the policy hides. */
__noinline int refuse(const struct packet *p, const struct device *device, __u32 slot,
		      enum outcome why)
{
	if (!p || !device)
		return DROP;

	struct decision d = {};

	decide(p, device, slot, &d);
	if (!d.masquerade)
		return passed(p, d.kept);
	if (d.has_source && same(&d.source, &p->source))
		return passed(p, OUT_KEPT_BY_POLICY); /* it has that source already */
	return dropped(p, why);
}

/*
 * What one device of ours has translated, another one above or below it leaves alone. Each way
 * has a mark of its own: what is sent back in as it went out is a packet like any other.
 */
static __always_inline __u16 mark_of(bool outward)
{
	__u32 zero = 0;
	const struct node *of_node = bpf_map_lookup_elem(&node, &zero);

	if (!of_node)
		return 0;
	return outward ? of_node->mark : ~of_node->mark;
}

static __always_inline void mark(struct __sk_buff *skb, bool outward)
{
	skb->tc_index = mark_of(outward);
}

static __always_inline bool is_marked(const struct __sk_buff *skb, bool outward)
{
	return skb->tc_index && skb->tc_index == mark_of(outward);
}

/* Let a packet leave with the local end of its flow's key. */
__noinline int translate_outward(struct __sk_buff *skb, const struct packet *p,
				 const struct flow_key *key)
{
	if (!p || !key)
		return DROP;

	__be16 port = p->kind == PLAIN ? p->source_port : key->local_port;

	mark(skb, true);
	if (!same(&key->local, &p->source) || port != p->source_port) {
		if (rewrite(skb, p, SOURCE, &key->local, port))
			return dropped(p, OUT_DROPPED_MALFORMED);
	}
	return passed(p, OUT_TRANSLATED);
}

#endif
