// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Masquerading in tc: `outward` at the egress of a device, `inward` at its ingress.
 *
 * The policy decides about the first packet of a flow alone. What was decided stands in the
 * tables of flows: a flow goes on as it began when the policy changes, and a reply is never
 * taken for something new.
 */
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include "flows.h"
#include "translate.h"

#define NEXT TC_ACT_UNSPEC /* to whatever program or rule comes after this one */
#define DROP TC_ACT_SHOT

/*
 * Functions that are not static are read by the verifier once, by themselves, and not anew
 * with all that each caller knows. It wants to see there that pointers are not NULL.
 */

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
__noinline int refuse(const struct packet *p, const struct device *device, __u32 slot, enum outcome why)
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

/* Another device of ours below this one sees the packet too, and leaves it alone. */
static __always_inline void mark(struct __sk_buff *skb)
{
	__u32 zero = 0;
	const struct node *of_node = bpf_map_lookup_elem(&node, &zero);

	if (of_node)
		skb->tc_index = of_node->mark;
}

static __always_inline bool is_marked(const struct __sk_buff *skb)
{
	__u32 zero = 0;
	const struct node *of_node = bpf_map_lookup_elem(&node, &zero);

	return of_node && of_node->mark && skb->tc_index == of_node->mark;
}

/* Let a packet leave with the local end of its flow's key. */
__noinline int translate_outward(struct __sk_buff *skb, const struct packet *p, const struct flow_key *key)
{
	if (!p || !key)
		return DROP;

	__be16 port = p->kind == PLAIN ? p->source_port : key->local_port;

	mark(skb);
	if (!same(&key->local, &p->source) || port != p->source_port) {
		if (rewrite(skb, p, SOURCE, &key->local, port))
			return dropped(p, OUT_DROPPED_MALFORMED);
	}
	return passed(p, OUT_TRANSLATED);
}

/* -- packets that leave ------------------------------------------------------------------- */

struct finding {
	__u32 slot;
	__u32 ifindex;	      /* through which the packet leaves */
	struct choice choice; /* of its places: made here */
};

/*
 * Find the flow of a packet on its way out, of those that leave with an address of the node,
 * if it lives.
 * `key` becomes that of the flow that is found.
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

/* Put a flow into the table of kept ones; -1 where there is no room. */
__noinline int record_kept(const struct packet *p, __u32 state, bool outward, __u32 now)
{
	if (!p)
		return 0;

	struct flow_key key;
	struct kept fresh, *held;
	__u64 life;

	state = advanced(state, p, outward);
	fresh.life = LIFE(state, now + lifetime(p->protocol, state));
	if (outward)
		outward_key(&key, p);
	else
		inward_key(&key, p);
	count_entry(OF_KEPT, &key, 1);
	if (!bpf_map_update_elem(&kept, &key, &fresh, BPF_NOEXIST)) {
		count(p->family, state & FROM_OUTSIDE ? FLOWS_FROM_OUTSIDE : FLOWS_KEPT);
		return 0;
	}
	count_entry(OF_KEPT, &key, -1);
	held = bpf_map_lookup_elem(&kept, &key);
	if (!held)
		return -1;
	life = READ_ONCE(held->life);
	/* Anybody may forge a SYN: to a connection that goes on it means nothing. */
	if (STATE(life) & TAKING || (!outward && alive(life, now) && goes_on(STATE(life))))
		return 0;
	__sync_val_compare_and_swap(&held->life, life, fresh.life);
	return 0;
}

/* Remember that a flow keeps its source; it does so for now also where there is no room. */
static __always_inline void keep(const struct packet *p, __u32 state, bool outward, __u32 now)
{
	if (record_kept(p, state, outward, now) &&
	    (!make_room_for_kept(now) || record_kept(p, state, outward, now)))
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
	if (!d.masquerade && claiming.key.local_port == p->source_port) {
		mark(skb);
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
	mark(skb);
	if (same(&key.local, &quoted.source) && key.local_port == quoted.source_port)
		return passed(p, OUT_KEPT_BY_POLICY);
	swap_ends(&quoted);
	quoted.kind = kind;
	if (rewrite_quoted(skb, p, &quoted, DESTINATION, &key) ||
	    rewrite(skb, p, SOURCE, &key.local, 0))
		return dropped(p, OUT_DROPPED_MALFORMED);
	return passed(p, OUT_ERROR_TRANSLATED);
}

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

	if (!device || is_marked(skb) || !find_network(skb, device->link_header, &p) ||
	    is_foreign(skb, device))
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

/* -- packets that come in ----------------------------------------------------------------- */

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
	return !of_node || of_node->several || in_force->flags & FIXED_SOURCES || !allowed(in_force, slot, p->destination_port) ||
	       !same(&p->destination, &device->source[p->family & 1]);
}

/* A packet that came in and is for no flow with an address of the node. */
__noinline int keep_inward(const struct packet *p, const struct device *device, __u32 slot, __u32 now)
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
	if (!device || skb->pkt_type != PACKET_HOST ||
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

static long index_nth(__u32 index, void *context)
{
	struct collecting *listed = context;
	struct flow_key key;
	struct flow *flow;

	if (bpf_skb_load_bytes(listed->skb, sizeof(struct collection) + index * sizeof(key), &key,
			       sizeof(key)))
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
