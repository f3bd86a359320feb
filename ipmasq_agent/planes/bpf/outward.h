/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is to be known of a packet that leaves: its flow, and how a new one begins. */
#ifndef IPMASQ_OUTWARD_H
#define IPMASQ_OUTWARD_H

#include "verdict.h"

struct finding {
	__u32 slot;
	__u32 ifindex;	      /* through which the packet leaves */
	struct choice choice; /* of its places: made here */
};

/*
 * Find the flow of a packet on its way out, of those that leave with an address of the node,
 * if it lives. `key` becomes that of the flow that is found.
 */
static __noinline struct flow *find_flow(const struct packet *p, const struct device *device,
					 struct flow_key *key, struct finding *finding, __u32 now)
{
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &finding->slot);
	__u8 family = p->family & 1;
	const struct place *place;
	struct flow *flow;
	__u64 life;

	if (!in_force)
		return NULL;
	outward_key(key, p);
	finding->choice.hash = flow_hash(key);
	choose(&finding->choice, p, in_force, finding->slot,
	       same(&p->source, &device->source[family]));
	finding->choice.first = nth_port(&finding->choice, in_force, finding->slot, 0);
	key->local = device->source[family];
	key->local_port = finding->choice.first;
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow && life_of(flow, p, now))
		return flow;
	if (!may_have(OF_MOVED, finding->choice.hash))
		return NULL;
	key->local = p->source;
	key->local_port = p->source_port;
	place = bpf_map_lookup_elem(&moved, key);
	if (!place)
		return NULL;
	key->local = place->address;
	key->local_port = place->port;
	flow = bpf_map_lookup_elem(&flows, key);
	life = flow ? life_of(flow, p, now) : 0;
	if (!life)
		return NULL;
	/* As with MASQUERADE: where the address or the way has changed the flow gets a new one. */
	if (!(STATE(life) & BY_FIXED) &&
	    !same(&key->local, &device->source[family]) &&
	    (flow->ifindex != finding->ifindex || !is_own(&key->local, device, family)))
		return NULL;
	return flow;
}

/* Put a flow into the table of kept ones; 0, FULL or RACED. */
__noinline int record_kept(const struct packet *p, __u32 state, bool outward, __u32 now)
{
	if (!p)
		return 0;

	struct flow_key key;
	struct kept fresh, *held;
	long error;
	__u64 life;

	state = advanced(state, p, outward);
	fresh.life = LIFE(state, now + lifetime(p->protocol, state));
	if (outward)
		outward_key(&key, p);
	else
		inward_key(&key, p);
	count_entry(OF_KEPT, &key, 1);
	error = bpf_map_update_elem(&kept, &key, &fresh, BPF_NOEXIST);
	if (!error) {
		count(p->family, state & FROM_OUTSIDE ? FLOWS_FROM_OUTSIDE : FLOWS_KEPT);
		/* What comes in through a device of ours, and leaves by another, is told of there. */
		if (!(state & FROM_OUTSIDE))
			tell(&key, NULL);
		return 0;
	}
	count_entry(OF_KEPT, &key, -1);
	held = bpf_map_lookup_elem(&kept, &key);
	if (!held)
		return error == -EEXIST ? RACED : FULL;
	life = READ_ONCE(held->life);
	if (STATE(life) & TAKING)
		return RACED;
	/* Anybody may forge a SYN: to a connection that goes on it means nothing. */
	if (!outward && alive(life, now) && goes_on(STATE(life)))
		return 0;
	life = __sync_val_compare_and_swap(&held->life, life, fresh.life);
	return STATE(life) & TAKING ? RACED : 0;
}

/* Remember that a flow keeps its source; it does so for now also where there is no room. */
static __always_inline void keep(const struct packet *p, __u32 state, bool outward, __u32 now)
{
	int error = record_kept(p, state, outward, now);

	if (error == RACED || (error == FULL && make_room_for_kept(now)))
		error = record_kept(p, state, outward, now);
	if (error)
		count(p->family, FLOWS_UNRECORDED);
}

#define NOT_KEPT -1

/*
 * Take a packet on its way out into account where it is of a flow that keeps its source, or
 * of such a one that came from outside. Returns what to count it as.
 */
__noinline int go_on_kept(const struct packet *p, bool from_outside, __u32 now)
{
	if (!p)
		return NOT_KEPT;

	struct flow_key key;
	struct kept *held;
	__u64 life;

	outward_key(&key, p);
	held = bpf_map_lookup_elem(&kept, &key);
	if (!held)
		return NOT_KEPT;
	life = READ_ONCE(held->life);
	if (!alive(life, now) || (from_outside && !(STATE(life) & FROM_OUTSIDE)))
		return NOT_KEPT;
	touch(&held->life, p, true, now);
	return STATE(life) & FROM_OUTSIDE ? OUT_KEPT_REPLY : OUT_KEPT_BY_POLICY;
}

/* A flow that connection tracking translates by now is no longer ours. */
__noinline int hand_over(const struct packet *p, __u32 now)
{
	if (!p)
		return NEXT;

	struct flow_key key;
	struct flow *flow;

	outward_key(&key, p);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || !alive(READ_ONCE(flow->life), now) || life_of(flow, p, now))
		return passed(p, OUT_KEPT_DRAINING);
	let_end(&flow->life, now);
	return passed(p, OUT_HANDED_OVER);
}

/* Count a destination to which no place was free. */
__noinline int exhaust(const struct packet *p)
{
	if (!p)
		return DROP;

	struct exhausted_key key = {
		.remote = p->destination,
		.remote_port = p->destination_port,
		.protocol = p->protocol,
		.family = p->family,
	};
	__u64 *times = bpf_map_lookup_elem(&exhausted, &key), one = 1;

	if (times)
		__sync_fetch_and_add(times, 1);
	else
		bpf_map_update_elem(&exhausted, &key, &one, BPF_ANY);
	return dropped(p, OUT_DROPPED_PORTS);
}

/* Give a flow a place whose replies nobody else has; the key of it is left in `claiming`. */
static __always_inline enum claimed find_place(struct claiming *claiming,
					       const struct settings *in_force)
{
	__u32 ports = ports_of(&claiming->choice, in_force), places = 1;

	if (claiming->choice.any)
		places += SCATTERED + (ports < IN_ORDER ? ports : IN_ORDER);
	bpf_loop(places, claim_nth, claiming, 0);
	return claiming->claimed;
}

/* Whether a packet has the source that the policy fixes for pods' packets to there. */
__noinline int comes_from_fixed(const struct packet *p, __u32 slot)
{
	if (!p)
		return false;

	const struct address *source = look_up(&fixed, slot, p->family & 1, &p->destination);

	return source && same(source, &p->source);
}

/* Have a flow that has just got its place found there; it ends where there is no room for that. */
__noinline int index_at(const struct flow_key *of, __u32 now)
{
	if (!of)
		return -1;

	struct flow_key key = *of;
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);

	if (!flow || !index_flow(&key, flow))
		return 0;
	let_end(&flow->life, now);
	return -1;
}

/* Decide about a flow that is not in the tables, or is there and begins anew. */
__noinline int begin(struct __sk_buff *skb, const struct packet *p, const struct device *device,
		     const struct finding *finding, __u32 now)
{
	if (!p || !device || !finding)
		return DROP;

	__u32 slot = finding->slot;
	const struct settings *in_force = bpf_map_lookup_elem(&settings, &slot);
	__u8 family = p->family & 1;
	bool own = device->has_source[family] && same(&p->source, &device->source[family]);
	__u32 state = advanced(0, p, true);
	struct claiming claiming = {.slot = slot, .now = now};
	struct decision d = {};

	if (!in_force)
		return NEXT;
	decide(p, device, slot, &d);
	if (p->protocol == IPPROTO_TCP && !opens(p)) {
		if (is_own(&p->source, device, family))
			own = true, d.masquerade = false, d.kept = OUT_KEPT_OWN;
		/* Nobody begins like that: it answers what was not recorded, or not by us. */
		if (accepts(p)) {
			if (!own)
				keep(p, FROM_OUTSIDE, true, now);
			return passed(p, OUT_KEPT_REPLY);
		}
		if (own && p->tcp_flags & TCP_RST)
			return passed(p, OUT_KEPT_OWN);
	}
	if (d.masquerade && !d.has_source)
		return dropped(p, OUT_DROPPED_ADDRESS);
	if (!d.masquerade && !own && in_force->flags & FIXED_SOURCES)
		own = comes_from_fixed(p, slot);
	/* Whatever has an address of the node has replies that are nobody else's. */
	if (!d.masquerade && !own)
		own = is_own(&p->source, device, family);
	if (!d.masquerade && !own) {
		keep(p, 0, true, now);
		return passed(p, d.kept);
	}
	own = own && (!d.masquerade || same(&d.source, &p->source));
	outward_key(&claiming.key, p);
	claiming.key.local = d.masquerade ? d.source : p->source;
	claiming.flow.address = p->source;
	claiming.flow.port = p->source_port;
	claiming.flow.ifindex = skb->ifindex;
	if (d.fixed)
		state |= BY_FIXED;
	claiming.flow.life = LIFE(state, now + lifetime(p->protocol, state));
	claiming.choice = finding->choice;
	if (!d.masquerade)
		claiming.choice.prefers_own = true; /* the policy's ports are not for it */
	if (!d.masquerade && p->protocol == IPPROTO_TCP && !opens(p))
		claiming.choice.any = false; /* it is too late for another */

	if (find_place(&claiming, in_force) == FULL && make_room_for_flow(now))
		find_place(&claiming, in_force);
	switch (claiming.claimed) {
	case CLAIMED:
		break;
	case TAKEN:
		return d.masquerade || claiming.choice.any ? exhaust(p) : passed(p, d.kept);
	case RACED:
		return dropped(p, OUT_DROPPED_RACE);
	default:
		return d.masquerade ? dropped(p, OUT_DROPPED_TABLE) : passed(p, d.kept);
	}
	if (in_force->flags & INDEXING || claiming.key.local_port != finding->choice.first ||
	    !same(&claiming.key.local, &device->source[family])) {
		if (index_at(&claiming.key, now))
			return dropped(p, OUT_DROPPED_TABLE);
	}
	count(family, own ? FLOWS_OWN : FLOWS_TRANSLATED);
	tell(&claiming.key, (const struct place *)&claiming.flow);
	if (!d.masquerade && claiming.key.local_port == p->source_port) {
		mark(skb, true);
		return passed(p, d.kept);
	}
	return translate_outward(skb, p, &claiming.key);
}

/* Read the packet that an ICMP error quotes; false where it cannot be told of which flow. */
static __noinline int parse_quoted(struct __sk_buff *skb, const struct packet *error,
				   struct packet *quoted)
{
	quoted->family = error->family;
	quoted->network = error->transport + 8;
	return !parse(skb, quoted, true) && quoted->part != LATER &&
	       quoted->kind != ICMP_ERROR && quoted->kind != UNSUPPORTED && quoted->kind != LINK;
}

static __always_inline void swap_ends(struct packet *p)
{
	struct address source = p->source;
	__be16 port = p->source_port;

	p->source = p->destination;
	p->source_port = p->destination_port;
	p->destination = source;
	p->destination_port = port;
}

/* An error goes out about a packet that came in: it was translated back on its way here. */
__noinline int outward_error(struct __sk_buff *skb, const struct packet *p,
			     const struct device *device, __u32 slot, __u32 now)
{
	if (!p || !device)
		return DROP;

	struct packet quoted = {};
	struct flow_key key;
	const struct flow *flow;
	const struct kept *held;
	__u8 kind;
	struct finding finding = {.slot = slot, .ifindex = skb->ifindex};

	if (!parse_quoted(skb, p, &quoted))
		return refuse(p, device, slot, OUT_DROPPED_ICMP);
	/* As what it answers was, on its way out: then the answer to a query was a query. */
	kind = quoted.kind;
	swap_ends(&quoted);
	quoted.kind = kind == ANSWER ? PORTS : kind;
	flow = find_flow(&quoted, device, &key, &finding, now);
	if (!flow) {
		outward_key(&key, &quoted);
		held = bpf_map_lookup_elem(&kept, &key);
		if (!held || !alive(READ_ONCE(held->life), now))
			return refuse(p, device, slot, OUT_DROPPED_ICMP);
		return passed(p, STATE(READ_ONCE(held->life)) & FROM_OUTSIDE ? OUT_KEPT_REPLY
									      : OUT_KEPT_BY_POLICY);
	}
	mark(skb, true);
	if (same(&key.local, &quoted.source) && key.local_port == quoted.source_port)
		return passed(p, OUT_KEPT_BY_POLICY);
	swap_ends(&quoted);
	quoted.kind = kind;
	if (rewrite_quoted(skb, p, &quoted, DESTINATION, &key) ||
	    rewrite(skb, p, SOURCE, &key.local, 0))
		return dropped(p, OUT_DROPPED_MALFORMED);
	return passed(p, OUT_ERROR_TRANSLATED);
}

#endif
