// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Masquerading in tc: `outward` at the egress of a device, `inward` at its ingress.
 *
 * The policy decides about the first packet of a flow alone. What was decided stands in the
 * table of flows, in both directions: a flow goes on as it began when the policy changes,
 * and a reply is never taken for something new.
 */
#include <linux/pkt_cls.h>
#include "flows.h"
#include "translate.h"

#define NEXT TC_ACT_UNSPEC /* to whatever program or rule comes after this one */
#define DROP TC_ACT_SHOT

static __always_inline int kept(const struct packet *p, enum outcome why)
{
	count(p->key.family, why);
	return NEXT;
}

static __always_inline int dropped(const struct packet *p, enum outcome why)
{
	count(p->key.family, why);
	return DROP;
}

static __always_inline bool opens(const struct packet *p)
{
	return p->key.protocol == IPPROTO_TCP && p->part != LATER &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/*
 * The first fragment leaves its ports for the later ones, which find them here.
 * False where they do not.
 */
static __noinline int ports_of_fragments(struct packet *p, __u32 now)
{
	struct fragment_key key = {
		.source = p->key.source,
		.destination = p->key.destination,
		.id = p->fragment_id,
		.protocol = p->key.protocol,
		.family = p->key.family,
		.side = p->key.side,
	};
	struct fragment ports = {
		.source_port = p->key.source_port,
		.destination_port = p->key.destination_port,
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
	p->key.source_port = found->source_port;
	p->key.destination_port = found->destination_port;
	return true;
}

/* What cannot be translated never leaves with a source that the policy hides. */
static __noinline int refuse(const struct packet *p, const struct device *device, __u32 slot,
			     enum outcome why)
{
	struct decision d;

	decide(p, device, slot, &d);
	if (!d.masquerade)
		return kept(p, d.kept);
	if (d.has_source && same(&d.source, &p->key.source))
		return kept(p, OUT_KEPT_BY_POLICY); /* it has that source already */
	return dropped(p, why);
}

static __noinline int translate_outward(struct __sk_buff *skb, const struct packet *p,
					const struct address *to, __be16 port)
{
	if (p->kind == PLAIN)
		port = p->key.source_port;
	if (!same(to, &p->key.source) || port != p->key.source_port) {
		if (rewrite(skb, p, SOURCE, to, port))
			return dropped(p, OUT_DROPPED_MALFORMED);
	}
	return kept(p, OUT_TRANSLATED);
}

/*
 * Whether the packet is what a translated flow's packets look like afterwards, and no
 * socket of this host made it: another device of ours, or connection tracking, was first.
 */
static __always_inline bool is_translated(struct __sk_buff *skb, const struct packet *p,
					  __u32 now, struct flow_key *inward, struct flow *found)
{
	const struct flow *held;

	if (skb->sk)
		return false;
	swap_ends(inward, &p->key, INWARD);
	held = bpf_map_lookup_elem(&flows, inward);
	if (!held || !alive(held, now))
		return false;
	if (same(&held->address, &p->key.source) && held->port == p->key.source_port)
		return false;
	*found = *held;
	return true;
}

/* A flow that connection tracking translates by now is no longer ours. */
static __noinline int hand_over(struct __sk_buff *skb, const struct packet *p, __u32 now)
{
	struct flow_key key, outward;
	struct flow inward;

	if (!is_translated(skb, p, now, &key, &inward))
		return kept(p, OUT_KEPT_DRAINING);
	swap_ends(&outward, &key, OUTWARD);
	outward.source = inward.address;
	outward.source_port = inward.port;
	bpf_map_delete_elem(&flows, &key);
	bpf_map_delete_elem(&flows, &outward);
	return kept(p, OUT_HANDED_OVER);
}

/* Decide about a flow that is not in the table, or is there and begins anew. */
static __noinline int begin(struct __sk_buff *skb, struct packet *p, const struct device *device,
			    __u32 slot, bool anew)
{
	struct flow flow = {.state = advanced(0, p)};
	struct flow_key reply;
	struct decision d;
	struct flow *held;
	__u32 now = seconds();

	flow.expires = now + lifetime(p->key.protocol, flow.state);
	if (is_translated(skb, p, now, &reply, &flow))
		return kept(p, OUT_KEPT_BY_POLICY);
	decide(p, device, slot, &d);
	if (d.masquerade && (p->kind == ANSWER || p->part == LATER))
		return refuse(p, device, slot,
			      p->part == LATER ? OUT_DROPPED_FRAGMENT : OUT_DROPPED_ICMP);
	if (d.masquerade && !d.has_source)
		return dropped(p, OUT_DROPPED_ADDRESS);

	held = anew ? bpf_map_lookup_elem(&flows, &p->key) : NULL;
	/* Its first packet once more: the answer was lost. What has ended gets a port anew. */
	if (held && alive(held, now) && d.masquerade &&
	    (held->state & (TRANSLATED | FIN_OUTWARD | FIN_INWARD | RESET)) == TRANSLATED &&
	    same(&held->address, &d.source)) {
		flow.state |= TRANSLATED;
		flow.address = held->address;
		flow.port = held->port;
		if (!keep_inward(&p->key, &flow)) {
			held->state = flow.state;
			held->expires = flow.expires;
			return translate_outward(skb, p, &flow.address, flow.port);
		}
		flow.state &= ~TRANSLATED;
	}
	if (held)
		forget(&p->key, held);

	if (d.masquerade) {
		swap_ends(&reply, &p->key, INWARD);
		reply.destination = d.source;
		switch (claim(skb, p, slot, &reply, flow.expires)) {
		case CLAIMED:
			break;
		case TAKEN:
			return dropped(p, OUT_DROPPED_PORTS);
		default:
			return dropped(p, OUT_DROPPED_TABLE);
		}
		flow.state |= TRANSLATED;
		flow.address = d.source;
		flow.port = reply.destination_port;
	}
	if (bpf_map_update_elem(&flows, &p->key, &flow, BPF_ANY)) {
		if (!d.masquerade)
			return kept(p, d.kept);
		bpf_map_delete_elem(&flows, &reply);
		return dropped(p, OUT_DROPPED_TABLE);
	}
	count(p->key.family, d.masquerade ? FLOWS_TRANSLATED : FLOWS_KEPT);
	return d.masquerade ? translate_outward(skb, p, &flow.address, flow.port)
			    : kept(p, d.kept);
}

/* Read the packet that an ICMP error quotes; false where it cannot be told of which flow. */
static __noinline int parse_quoted(struct __sk_buff *skb, const struct packet *error,
				   struct packet *quoted)
{
	quoted->key.family = error->key.family;
	quoted->network = error->transport + 8;
	return !parse(skb, quoted, true) && quoted->part != LATER &&
	       quoted->kind != ICMP_ERROR && quoted->kind != UNSUPPORTED && quoted->kind != LINK;
}

/* An error goes out about a packet that came in: it was translated back on its way here. */
static __noinline int outward_error(struct __sk_buff *skb, const struct packet *p,
				    const struct device *device, __u32 slot, __u32 now)
{
	struct packet quoted = {};
	struct flow_key key;
	struct flow flow;
	const struct flow *held;

	if (!parse_quoted(skb, p, &quoted))
		return refuse(p, device, slot, OUT_DROPPED_ICMP);
	swap_ends(&key, &quoted.key, OUTWARD);
	held = bpf_map_lookup_elem(&flows, &key);
	if (!held || !alive(held, now))
		return refuse(p, device, slot, OUT_DROPPED_ICMP);
	if (!(held->state & TRANSLATED))
		return kept(p, held->state & FROM_OUTSIDE ? OUT_KEPT_REPLY : OUT_KEPT_BY_POLICY);
	flow = *held;
	if (rewrite_quoted(skb, p, &quoted, DESTINATION, &flow) ||
	    rewrite(skb, p, SOURCE, &flow.address, 0))
		return dropped(p, OUT_DROPPED_MALFORMED);
	return kept(p, OUT_ERROR_TRANSLATED);
}

/* An error comes in about a packet that went out, translated. */
static __noinline int inward_error(struct __sk_buff *skb, const struct packet *p, __u32 now)
{
	struct packet quoted = {};
	struct flow_key key;
	struct flow flow;
	const struct flow *held;

	if (!parse_quoted(skb, p, &quoted))
		return kept(p, IN_PASSED);
	swap_ends(&key, &quoted.key, INWARD);
	held = bpf_map_lookup_elem(&flows, &key);
	if (!held || !alive(held, now))
		return kept(p, IN_PASSED);
	flow = *held;
	if (same(&flow.address, &quoted.key.source) && flow.port == quoted.key.source_port)
		return kept(p, IN_PASSED); /* of the host's own */
	if (rewrite_quoted(skb, p, &quoted, SOURCE, &flow) ||
	    rewrite(skb, p, DESTINATION, &flow.address, 0))
		return dropped(p, IN_DROPPED_MALFORMED);
	return kept(p, IN_ERROR_TRANSLATED);
}

SEC("tc")
int outward(struct __sk_buff *skb)
{
	struct packet p = {.key.side = OUTWARD};
	__u32 ifindex = skb->ifindex, now, slot;
	const struct device *device = bpf_map_lookup_elem(&devices, &ifindex);
	const struct settings *in_force;
	struct flow *flow;
	int error;

	if (!device || !find_network(skb, device->link_header, &p))
		return NEXT;
	slot = slot_in_force(p.key.family);
	in_force = bpf_map_lookup_elem(&settings, &slot);
	if (!in_force || !(in_force->flags & (MANAGED | DRAINING)))
		return NEXT;
	if (device->loopback && !(in_force->flags & LOCAL_TOO))
		return NEXT;
	error = parse(skb, &p, false);
	if (error == -1)
		return NEXT; /* it says IP and is not */
	if (of_link(&p.key) || p.kind == LINK)
		return kept(&p, OUT_KEPT_SCOPE);
	if (error)
		return refuse(&p, device, slot, OUT_DROPPED_MALFORMED);
	if (p.kind == UNSUPPORTED)
		return refuse(&p, device, slot,
			      p.key.protocol == IPPROTO_ICMP || p.key.protocol == IPPROTO_ICMPV6
				      ? OUT_DROPPED_ICMP
				      : OUT_DROPPED_PROTOCOL);
	now = seconds();
	if (p.kind == ICMP_ERROR)
		return outward_error(skb, &p, device, slot, now);
	if (p.part != WHOLE && !ports_of_fragments(&p, now))
		return refuse(&p, device, slot, OUT_DROPPED_FRAGMENT);

	flow = bpf_map_lookup_elem(&flows, &p.key);
	/* A new connection of a pod is never taken for a reply within an older one. */
	if (flow && alive(flow, now) && !(opens(&p) && flow->state & SEEN_INWARD)) {
		__u32 state = flow->state;
		struct flow held = *flow;

		if (!touch(flow, &p, now) || !(state & TRANSLATED) || !keep_inward(&p.key, flow)) {
			if (state & TRANSLATED)
				return translate_outward(skb, &p, &held.address, held.port);
			return kept(&p, state & FROM_OUTSIDE ? OUT_KEPT_REPLY : OUT_KEPT_BY_POLICY);
		}
		/* Its port is another's by now: all that is left is another port. */
		bpf_map_delete_elem(&flows, &p.key);
	}
	if (in_force->flags & DRAINING)
		return hand_over(skb, &p, now);
	return begin(skb, &p, device, slot, flow != NULL);
}

/* A packet that came in and is no reply to a translated flow: of a kept one, or the first. */
static __noinline int keep_inward_flow(const struct packet *p, __u32 now, bool managed)
{
	struct flow flow = {.state = advanced(FROM_OUTSIDE, p)};
	struct flow_key key;
	struct flow *held;

	swap_ends(&key, &p->key, OUTWARD);
	held = bpf_map_lookup_elem(&flows, &key);
	if (held && alive(held, now) &&
	    !(opens(p) && (!(held->state & TRANSLATED) ||
			   held->state & (FIN_OUTWARD | FIN_INWARD | RESET)))) {
		touch(held, p, now);
		return kept(p, IN_PASSED);
	}
	/* What answers nothing, and what ends a connection, begins none. */
	if (!managed || p->kind == ANSWER || p->part == LATER ||
	    (p->key.protocol == IPPROTO_TCP && p->tcp_flags & TCP_RST))
		return kept(p, IN_PASSED);
	flow.expires = now + lifetime(p->key.protocol, flow.state);
	if (held)
		forget(&key, held);
	if (!bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		count(p->key.family, FLOWS_FROM_OUTSIDE);
	return kept(p, IN_PASSED);
}

/* A reply to a translated flow: keep both halves of the flow alive. */
static __noinline int touch_inward(struct flow *inward, const struct packet *p, __u32 now)
{
	struct flow fresh = {
		.address = p->key.destination,
		.port = p->key.destination_port,
		.state = TRANSLATED | SEEN_OUTWARD,
	};
	struct flow_key key;
	struct flow *outward;

	swap_ends(&key, &p->key, OUTWARD);
	key.source = inward->address;
	key.source_port = inward->port;
	outward = bpf_map_lookup_elem(&flows, &key);
	if (outward && outward->state & TRANSLATED &&
	    same(&outward->address, &fresh.address) && outward->port == fresh.port) {
		touch(outward, p, now);
		inward->expires = outward->expires;
	} else if (!outward) {
		fresh.state = advanced(fresh.state, p);
		fresh.expires = now + lifetime(p->key.protocol, fresh.state);
		bpf_map_update_elem(&flows, &key, &fresh, BPF_NOEXIST);
		inward->expires = fresh.expires;
	}
	__sync_fetch_and_or(&inward->state, SEEN_INWARD);
	return 0;
}

SEC("tc")
int inward(struct __sk_buff *skb)
{
	struct packet p = {.key.side = INWARD};
	__u32 ifindex = skb->ifindex, now, slot;
	const struct device *device = bpf_map_lookup_elem(&devices, &ifindex);
	const struct settings *in_force;
	struct flow held, *flow;

	if (!device || !find_network(skb, device->link_header, &p))
		return NEXT;
	slot = slot_in_force(p.key.family);
	in_force = bpf_map_lookup_elem(&settings, &slot);
	if (!in_force || !(in_force->flags & (MANAGED | DRAINING)))
		return NEXT;
	if (device->loopback && !(in_force->flags & LOCAL_TOO))
		return NEXT;
	if (parse(skb, &p, false) || of_link(&p.key) || p.kind == LINK || p.kind == UNSUPPORTED)
		return NEXT;
	now = seconds();
	if (p.kind == ICMP_ERROR)
		return inward_error(skb, &p, now);
	if (p.part != WHOLE && !ports_of_fragments(&p, now))
		return kept(&p, IN_PASSED);

	flow = bpf_map_lookup_elem(&flows, &p.key);
	if (!flow || !alive(flow, now))
		return keep_inward_flow(&p, now, in_force->flags & MANAGED);
	held = *flow;
	/* Each packet that moves the state counts; of the others one in a second. */
	if (!(held.state & SEEN_INWARD) || p.tcp_flags & (TCP_FIN | TCP_RST | TCP_SYN) ||
	    held.expires != now + lifetime(p.key.protocol, SEEN_OUTWARD | SEEN_INWARD))
		touch_inward(flow, &p, now);
	if (!same(&held.address, &p.key.destination) || held.port != p.key.destination_port) {
		if (rewrite(skb, &p, DESTINATION, &held.address,
			    p.kind == PLAIN ? p.key.destination_port : held.port))
			return dropped(&p, IN_DROPPED_MALFORMED);
	}
	return kept(&p, IN_TRANSLATED);
}

/* -- for the agent alone, by BPF_PROG_TEST_RUN -------------------------------------------- */

struct sweeping {
	__u32 now;
	struct swept *found;
};

static long sweep_one(void *map, const void *key, void *value, void *context)
{
	const struct flow_key *of = key;
	const struct flow *flow = value;
	struct sweeping *sweeping = context;

	if (!alive(flow, sweeping->now)) {
		bpf_map_delete_elem(map, key);
		sweeping->found->removed++;
	} else if (of->side == OUTWARD) {
		sweeping->found->alive[of->family & 1]++;
		/* The host's own keep their address, and often their port: nothing to wait for. */
		if (flow->state & TRANSLATED && (!same(&flow->address, &of->source) ||
						 flow->port != of->source_port))
			sweeping->found->translated[of->family & 1]++;
	}
	return 0;
}

/* Remove what has expired, and count what is left. */
SEC("tc")
int sweep(struct __sk_buff *skb)
{
	struct sweeping sweeping = {.now = seconds()};
	__u32 first = 0;

	sweeping.found = bpf_map_lookup_elem(&swept, &first);
	if (!sweeping.found)
		return 1;
	__builtin_memset(sweeping.found, 0, sizeof(struct swept));
	return bpf_for_each_map_elem(&flows, sweep_one, &sweeping, 0) < 0;
}

/* bpf_sk_lookup_tcp and others are for programs under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
