// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Masquerading in tc: `outward` at the egress of a device, `inward` at its ingress.
 *
 * The policy decides about the first packet of a flow alone. What was decided stands in the
 * tables of flows: a flow goes on as it began when the policy changes, and a reply is never
 * taken for something new.
 */
#include <linux/if_packet.h>
#include "inward.h"

SEC("tc")
int outward(struct __sk_buff *skb)
{
	struct packet p = {};
	struct finding finding = {.ifindex = skb->ifindex};
	const struct device *device = bpf_map_lookup_elem(&devices, &finding.ifindex);
	const struct settings *in_force;
	struct flow_key key;
	struct flow *flow;
	__u32 now, slot;
	int error, outcome;

	/* A reply that was translated back may go on through another device, and is no new flow. */
	if (!device || is_marked(skb, true) || is_marked(skb, false) ||
	    !find_network(skb, device->link_header, &p) || is_foreign(skb, device))
		return NEXT;
	slot = finding.slot = slot_in_force(p.family);
	in_force = bpf_map_lookup_elem(&settings, &finding.slot);
	if (!in_force || !(in_force->flags & (MANAGED | DRAINING)))
		return NEXT;
	if (device->loopback && !(in_force->flags & LOCAL_TOO))
		return NEXT;
	now = seconds();
	if (!parse_plain(skb, &p)) {
		error = parse(skb, &p, false);
		if (error == -1)
			return NEXT; /* it says IP and is not */
		if (of_link(&p) || p.kind == LINK)
			return passed(&p, OUT_KEPT_SCOPE);
		if (error)
			return refuse(&p, device, slot, OUT_DROPPED_MALFORMED);
		if (p.kind == UNSUPPORTED)
			return refuse(&p, device, slot,
				      p.protocol == IPPROTO_ICMP || p.protocol == IPPROTO_ICMPV6
					      ? OUT_DROPPED_ICMP
					      : OUT_DROPPED_PROTOCOL);
		if (p.kind == ICMP_ERROR)
			return outward_error(skb, &p, device, slot, now);
		if (p.part != WHOLE && !ports_of_fragments(&p, now))
			return refuse(&p, device, slot, OUT_DROPPED_FRAGMENT);
	} else if (of_link(&p)) {
		return passed(&p, OUT_KEPT_SCOPE);
	}

	flow = find_flow(&p, device, &key, &finding, now);
	/* A new connection of a pod is never taken for a part of an older one. */
	if (flow && opens(&p) && STATE(READ_ONCE(flow->life)) & SEEN_INWARD) {
		let_end(&flow->life, now);
		flow = NULL;
	}
	if (flow && !accepts(&p)) {
		touch(&flow->life, &p, true, now);
		return translate_outward(skb, &p, &key);
	}
	outcome = NOT_KEPT;
	if (!opens(&p) && may_have(OF_KEPT, finding.choice.hash))
		outcome = go_on_kept(&p, flow != NULL, now);
	if (outcome != NOT_KEPT) {
		if (flow) /* of an older connection: this one came from outside */
			let_end(&flow->life, now);
		return passed(&p, outcome);
	}
	if (flow) { /* both ends opened it at once */
		touch(&flow->life, &p, true, now);
		return translate_outward(skb, &p, &key);
	}
	if (in_force->flags & DRAINING)
		return hand_over(&p, now);
	if (p.kind == ANSWER)
		return refuse(&p, device, slot, OUT_DROPPED_ICMP);
	if (p.part == LATER)
		return refuse(&p, device, slot, OUT_DROPPED_FRAGMENT);
	return begin(skb, &p, device, &finding, now);
}

SEC("tc")
int inward(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 ifindex = skb->ifindex, now, slot;
	const struct device *device = bpf_map_lookup_elem(&devices, &ifindex);
	const struct settings *in_force;
	struct flow_key key;
	struct place owner = {};
	struct flow *flow;

	/* A frame for another address of the link is a macvlan's, or a port's of a bridge. */
	if (!device || is_marked(skb, false) || skb->pkt_type != PACKET_HOST ||
	    !find_network(skb, device->link_header, &p))
		return NEXT;
	slot = slot_in_force(p.family);
	in_force = bpf_map_lookup_elem(&settings, &slot);
	if (!in_force || !(in_force->flags & (MANAGED | DRAINING)))
		return NEXT;
	if (device->loopback && !(in_force->flags & LOCAL_TOO))
		return NEXT;
	now = seconds();
	if (!parse_plain(skb, &p)) {
		if (parse(skb, &p, false) || of_link(&p) || p.kind == LINK ||
		    p.kind == UNSUPPORTED)
			return NEXT;
		if (p.kind == ICMP_ERROR)
			return inward_error(skb, &p, now);
		if (p.part != WHOLE && !ports_of_fragments(&p, now))
			return passed(&p, IN_PASSED_FRAGMENT);
	} else if (of_link(&p)) {
		return NEXT;
	}

	inward_key(&key, &p);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || !alive(READ_ONCE(flow->life), now))
		return keep_inward(&p, device, slot, now);
	barrier(); /* the owner is read while it lives, see `life_of` */
	owner.address = flow->address;
	owner.port = p.kind == PLAIN ? p.destination_port : flow->port;
	touch(&flow->life, &p, false, now);
	if (same(&owner.address, &p.destination) && owner.port == p.destination_port)
		return passed(&p, IN_PASSED);
	mark(skb, false);
	if (rewrite(skb, &p, DESTINATION, &owner.address, owner.port))
		return dropped(&p, IN_DROPPED_MALFORMED);
	return passed(&p, IN_TRANSLATED);
}

/* -- for the agent alone, by BPF_PROG_TEST_RUN -------------------------------------------- */

/* Remove those of the flows that the packet lists which have expired; returns how many. */
SEC("tc")
int collect(struct __sk_buff *skb)
{
	struct collecting collecting = {.skb = skb, .clearing = {.now = seconds()}};
	struct collection order;

	if (bpf_skb_load_bytes(skb, 0, &order, sizeof(order)))
		return 0;
	collecting.of_kept = order.of_kept;
	bpf_loop(order.count < MOST_COLLECTED ? order.count : MOST_COLLECTED, collect_nth,
		 &collecting, 0);
	count_cleared(&collecting.clearing);
	return collecting.clearing.gone;
}

static long index_nth(__u32 nth, void *context)
{
	struct flow_key key;
	struct flow *flow;

	if (!nth_listed(context, nth, &key))
		return 1;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && index_flow(&key, flow))
		count(key.family & 1, FLOWS_UNRECORDED);
	return 0;
}

/*
 * Have the flows that the packet lists found also by what they are before translation: their
 * first places are about to change.
 */
SEC("tc")
int index_flows(struct __sk_buff *skb)
{
	struct collecting listed = {.skb = skb};
	struct collection order;

	if (bpf_skb_load_bytes(skb, 0, &order, sizeof(order)))
		return 0;
	bpf_loop(order.count < MOST_COLLECTED ? order.count : MOST_COLLECTED, index_nth, &listed, 0);
	return 0;
}

/*
 * Write a block of `details` while programs read it: each part then has its old code or its
 * new one. What bpf(2) does instead is to put another element in its place, and the room of
 * the old one is given away at once, with readers in it (alloc_htab_elem,
 * kernel/bpf/hashtab.c).
 */
SEC("tc")
int write_block(struct __sk_buff *skb)
{
	struct block_to_write given;
	struct block *held;
	void *blocks;

	if (bpf_skb_load_bytes(skb, 0, &given, sizeof(given)))
		return 1;
	blocks = bpf_map_lookup_elem(&details, &given.slot);
	if (!blocks)
		return 1;
	held = bpf_map_lookup_elem(blocks, &given.number);
	if (!held)
		return bpf_map_update_elem(blocks, &given.number, &given.block, BPF_NOEXIST) != 0;
	*held = given.block;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
