/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is to be known of a packet that comes in and is for no flow of the node. */
#ifndef IPMASQ_INWARD_H
#define IPMASQ_INWARD_H

#include "outward.h"

/* An error comes in about a packet that went out, translated. */
__noinline int inward_error(struct __sk_buff *skb, const struct packet *p, __u32 now)
{
	if (!p)
		return NEXT;

	struct packet quoted = {};
	struct flow_key key;
	const struct flow *flow;

	if (!parse_quoted(skb, p, &quoted))
		return passed(p, IN_PASSED);
	outward_key(&key, &quoted);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || !alive(READ_ONCE(flow->life), now))
		return passed(p, IN_PASSED);
	key.local = flow->address;
	key.local_port = flow->port;
	if (same(&key.local, &quoted.source) && key.local_port == quoted.source_port)
		return passed(p, IN_PASSED); /* about the node's own */
	mark(skb, false);
	if (rewrite_quoted(skb, p, &quoted, SOURCE, &key) ||
	    rewrite(skb, p, DESTINATION, &key.local, 0))
		return dropped(p, IN_DROPPED_MALFORMED);
	return passed(p, IN_ERROR_TRANSLATED);
}

/*
 * Whether the answer to a packet for the node itself could be taken for something new, and
 * get another address or port: then what it answers must be remembered. Of TCP it is told by
 * its flags, and what is never remembered fills no table.
 */
static __always_inline bool answer_needs_record(const struct packet *p, const struct device *device,
						const struct settings *in_force, __u32 slot)
{
	__u32 zero = 0;
	const struct node *of_node = bpf_map_lookup_elem(&node, &zero);

	if (p->protocol == IPPROTO_TCP || p->kind != PORTS)
		return false;
	if (!of_node || of_node->several || in_force->flags & FIXED_SOURCES)
		return true;
	return !allowed(in_force, slot, p->destination_port) ||
	       !same(&p->destination, &device->source[p->family & 1]);
}

/* A packet that came in and is for no flow with an address of the node. */
__noinline int keep_inward(const struct packet *p, const struct device *device, __u32 slot,
			   __u32 now)
{
	if (!p || !device)
		return NEXT;

	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	struct flow_key key;
	struct kept *held;
	bool of_device;

	if (!in_force)
		return NEXT;
	of_device = same(&p->destination, &device->source[p->family & 1]);
	if (of_device && !answer_needs_record(p, device, in_force, slot))
		return passed(p, IN_PASSED);
	if (!opens(p)) {
		inward_key(&key, p);
		held = bpf_map_lookup_elem(&kept, &key);
		if (held && alive(READ_ONCE(held->life), now)) {
			touch(&held->life, p, false, now);
			return passed(p, IN_PASSED);
		}
	}
	/* What answers nothing, and what ends a connection, begins none. */
	if (!(in_force->flags & MANAGED) || p->kind == ANSWER || p->part == LATER ||
	    (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_RST))
		return passed(p, IN_PASSED);
	if (!is_own(&p->destination, device, p->family) ||
	    answer_needs_record(p, device, in_force, slot))
		keep(p, FROM_OUTSIDE, false, now);
	return passed(p, IN_PASSED);
}

#endif
