/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading a packet: where its headers are, and the key of its flow. */
#ifndef IPMASQ_PACKET_H
#define IPMASQ_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

#define MAX_EXTENSIONS	8
#define VLAN_NUMBER	0x0fff
#define IP_MORE		0x2000
#define IP_OFFSET	0x1fff
#define TCP_FIN		0x01
#define TCP_SYN		0x02
#define TCP_RST		0x04
#define TCP_ACK		0x10

/* A TCP header as far as the flags; of its numbers the lower halves are enough here. */
struct tcp_begin {
	__be16 source, destination;
	__be16 sequence_high, sequence;
	__be16 acknowledged_high, acknowledged;
	__u8 offset, flags;
};

/* linux/icmp.h wants the headers of the C library, which are not made for this target. */
#define ICMP_ECHOREPLY	     0
#define ICMP_DEST_UNREACH    3
#define ICMP_SOURCE_QUENCH   4
#define ICMP_REDIRECT	     5
#define ICMP_ECHO	     8
#define ICMP_TIME_EXCEEDED   11
#define ICMP_PARAMETERPROB   12
#define ICMP_TIMESTAMP	     13
#define ICMP_TIMESTAMPREPLY  14
#define ICMPV6_ECHO_REQUEST  128
#define ICMPV6_ECHO_REPLY    129

#define PROTOCOL_AH	  51
#define PROTOCOL_DCCP	  33
#define PROTOCOL_SCTP	  132
#define PROTOCOL_UDPLITE 136
#define EXT_HOP		  0
#define EXT_ROUTING	  43
#define EXT_FRAGMENT	  44
#define EXT_DESTINATION	  60

enum kind {
	PLAIN,	     /* no ports that could be changed: SCTP, whose checksum covers them, GRE... */
	PORTS,	     /* TCP, UDP, or an ICMP query: a port or identifier, and a checksum */
	ANSWER,	     /* the reply to an ICMP query: its identifier is the other side's choice */
	ICMP_ERROR,  /* with a part of the packet that it is about */
	LINK,	     /* neighbour discovery and the like: not for translation */
	UNSUPPORTED, /* nothing that could be translated */
};

enum part {
	WHOLE,
	FIRST, /* of a fragmented packet: it has the ports */
	LATER,
};

struct packet {
	struct address source, destination;
	__be16 source_port, destination_port; /* ICMP query: its identifier, and 0 */
	__u8 protocol;
	__u8 family;
	__u8 kind;
	__u8 part;
	__u8 tcp_flags;
	__u8 plain;	 /* ports follow on an IP header without options, in a whole packet */
	__be16 checksum; /* of that IP header, in IPv4 */
	__u16 number;	 /* TCP, the lower half: what it acknowledges, or wants to have so */
	__u32 network;	 /* offsets from the packet's begin */
	__u32 transport; /* not there in a LATER one */
	__be32 fragment_id;
};

/* The checksum field of a protocol: its offset, or -1 where there is none to keep right. */
static __always_inline int checksum_at(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	default:
		return -1;
	}
}

/*
 * Find the IP header, right behind that of the link; false where there is none. With a VLAN
 * tag it is a packet of another device, that of the VLAN.
 */
static __always_inline bool find_network(const struct __sk_buff *skb, __u8 link_header,
					 struct packet *p)
{
	/* At ingress the tag is out of the frame already; with number 0 it means priority alone. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_NUMBER)
		return false;
	p->network = link_header;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		p->family = IPV4;
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		p->family = IPV6;
	else
		return false;
	return true;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr header;
	__u16 fragment;

	if (bpf_skb_load_bytes(skb, p->network, &header, sizeof(header)))
		return -1;
	if (header.version != 4 || header.ihl < 5)
		return -1;
	p->source.word[0] = header.saddr;
	p->destination.word[0] = header.daddr;
	p->protocol = header.protocol;
	p->transport = p->network + header.ihl * 4;
	fragment = bpf_ntohs(header.frag_off);
	p->part = fragment & IP_OFFSET ? LATER : fragment & IP_MORE ? FIRST : WHOLE;
	p->fragment_id = header.id;
	return 0;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == EXT_HOP || next == EXT_ROUTING || next == EXT_DESTINATION ||
	       next == EXT_FRAGMENT || next == PROTOCOL_AH;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr header;
	__u8 next;

	if (bpf_skb_load_bytes(skb, p->network, &header, sizeof(header)))
		return -1;
	if (header.version != 6)
		return -1;
	__builtin_memcpy(&p->source, &header.saddr, sizeof(struct address));
	__builtin_memcpy(&p->destination, &header.daddr, sizeof(struct address));
	p->transport = p->network + sizeof(header);
	next = header.nexthdr;
	for (int extension = 0; is_extension(next); extension++) {
		struct {
			__u8 next, length;
			__be16 offset;
			__be32 id;
		} ext;

		if (extension == MAX_EXTENSIONS) {
			p->kind = UNSUPPORTED; /* what has ports may come behind it */
			break;
		}
		if (bpf_skb_load_bytes(skb, p->transport, &ext, sizeof(ext)))
			return -2;
		if (next == EXT_FRAGMENT) {
			__u16 offset = bpf_ntohs(ext.offset);

			p->fragment_id = ext.id;
			/* RFC 6946: one with offset 0 and no more to come is whole. */
			p->part = offset & ~7 ? LATER : offset & 1 ? FIRST : WHOLE;
			p->transport += sizeof(ext);
		} else if (next == PROTOCOL_AH) {
			/* RFC 4302: it signs the addresses. */
			p->kind = UNSUPPORTED;
			p->transport += (ext.length + 2) * 4;
		} else {
			p->transport += (ext.length + 1) * 8;
		}
		next = ext.next;
		if (p->part == LATER)
			break; /* what follows is in the middle of something */
	}
	p->protocol = next;
	return 0;
}

static __always_inline void parse_icmp(struct packet *p, __u8 type, __be16 id)
{
	switch (type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
		p->kind = PORTS;
		p->source_port = id;
		break;
	case ICMP_ECHOREPLY:
	case ICMP_TIMESTAMPREPLY:
		p->kind = ANSWER;
		p->destination_port = id;
		break;
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		p->kind = ICMP_ERROR;
		break;
	default:
		p->kind = UNSUPPORTED;
	}
}

/* Listeners, routers and neighbours; other types in between are answered from afar too. */
static __always_inline bool is_of_link_icmpv6(__u8 type)
{
	return (type >= 130 && type <= 137) || /* RFC 2710, RFC 4861 */
	       (type >= 141 && type <= 143) || /* RFC 3122, RFC 3810 */
	       type == 148 || type == 149 ||   /* RFC 3971 */
	       (type >= 151 && type <= 153);   /* RFC 4286 */
}

static __always_inline void parse_icmpv6(struct packet *p, __u8 type, __be16 id)
{
	if (type == ICMPV6_ECHO_REQUEST) {
		p->kind = PORTS;
		p->source_port = id;
	} else if (type == ICMPV6_ECHO_REPLY) {
		p->kind = ANSWER;
		p->destination_port = id;
	} else if (type < 128) {
		p->kind = ICMP_ERROR; /* RFC 4443: errors have the high bit clear */
	} else if (is_of_link_icmpv6(type)) {
		p->kind = LINK;
	} else {
		p->kind = UNSUPPORTED;
	}
}

static __always_inline void read_tcp(struct packet *p, const struct tcp_begin *tcp)
{
	p->tcp_flags = tcp->flags;
	p->number = tcp->flags & TCP_SYN ? bpf_ntohs(tcp->sequence) + 1
					 : bpf_ntohs(tcp->acknowledged);
}

static __always_inline bool opens(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && p->part != LATER &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* Whether a packet accepts a connection: whoever opened it is at the other end. */
static __always_inline bool accepts(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && p->part != LATER &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == (TCP_SYN | TCP_ACK);
}

/*
 * A function that is not static is read by the verifier once, by itself, and not anew with all
 * that each caller knows; there are more of them below. It wants to see that pointers are not
 * NULL.
 */

/*
 * Read the headers from p->network on, of the family that is set. `quoted` is a packet
 * within an ICMP error: of its transport header eight bytes are sure to be there.
 * Returns 0, -1 where not even the addresses can be read, or -2 where the rest cannot.
 */
__noinline int parse(struct __sk_buff *skb, struct packet *p, bool quoted)
{
	if (!p)
		return -1;

	union {
		struct {
			__be16 source, destination;
		} ports;
		struct {
			__u8 type, code;
			__be16 checksum, id, sequence;
		} icmp;
		struct tcp_begin tcp;
	} header = {};
	int error;

	p->kind = PLAIN;
	p->part = WHOLE;
	error = p->family == IPV4 ? parse_ipv4(skb, p) : parse_ipv6(skb, p);
	if (error)
		return error;
	if (p->kind == UNSUPPORTED)
		return 0;
	switch (p->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		p->kind = PORTS;
		if (p->part == LATER)
			return 0;
		if (bpf_skb_load_bytes(skb, p->transport, &header.ports, sizeof(header.ports)))
			return -2;
		p->source_port = header.ports.source;
		p->destination_port = header.ports.destination;
		if (p->protocol == IPPROTO_UDP || quoted)
			return 0;
		if (bpf_skb_load_bytes(skb, p->transport, &header.tcp, sizeof(struct tcp_begin)))
			return -2;
		read_tcp(p, &header.tcp);
		return 0;
	case PROTOCOL_SCTP:
		if (p->part == LATER)
			return 0;
		if (bpf_skb_load_bytes(skb, p->transport, &header.ports, sizeof(header.ports)))
			return -2;
		p->source_port = header.ports.source;
		p->destination_port = header.ports.destination;
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->protocol == IPPROTO_ICMP) != (p->family == IPV4)) {
			p->kind = UNSUPPORTED;
			return 0;
		}
		p->kind = PORTS;
		if (p->part == LATER)
			return 0;
		if (bpf_skb_load_bytes(skb, p->transport, &header.icmp, sizeof(header.icmp)))
			return -2;
		if (p->family == IPV4)
			parse_icmp(p, header.icmp.type, header.icmp.id);
		else
			parse_icmpv6(p, header.icmp.type, header.icmp.id);
		return 0;
	case PROTOCOL_AH:	/* signs the addresses */
	case PROTOCOL_DCCP:	/* its checksum covers the addresses, and is not ours to fix */
	case PROTOCOL_UDPLITE:
		p->kind = UNSUPPORTED;
		return 0;
	default:
		return 0;
	}
}

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

/*
 * Read what nearly all packets are, TCP or UDP in a whole packet without options, from the
 * linear part of the packet; false where it is not such a one, or not there.
 */
static __always_inline bool parse_plain(const struct __sk_buff *skb, struct packet *p)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const void *network = data + (p->network & 0xff);
	const __be16 *ports;

	if (p->family == IPV4) {
		const struct iphdr *ip = network;

		if (network + sizeof(*ip) + sizeof(__be32) > end)
			return false;
		if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(IP_MORE | IP_OFFSET))
			return false;
		p->protocol = ip->protocol;
		p->source.word[0] = ip->saddr;
		p->destination.word[0] = ip->daddr;
		p->checksum = ip->check;
		p->transport = p->network + sizeof(*ip);
		ports = network + sizeof(*ip);
	} else {
		const struct ipv6hdr *ip = network;

		if (network + sizeof(*ip) + sizeof(__be32) > end)
			return false;
		if (ip->version != 6)
			return false;
		p->protocol = ip->nexthdr;
		__builtin_memcpy(&p->source, &ip->saddr, sizeof(struct address));
		__builtin_memcpy(&p->destination, &ip->daddr, sizeof(struct address));
		p->transport = p->network + sizeof(*ip);
		ports = network + sizeof(*ip);
	}
	if (p->protocol == IPPROTO_TCP) {
		if ((const void *)ports + sizeof(struct tcp_begin) > end)
			return false;
		read_tcp(p, (const void *)ports);
	} else if (p->protocol != IPPROTO_UDP) {
		return false;
	}
	p->source_port = ports[0];
	p->destination_port = ports[1];
	p->kind = PORTS;
	p->part = WHOLE;
	p->plain = true;
	return true;
}

/*
 * Whether a frame on its way out is not the node's: a macvlan on the device, or a port of a
 * bridge below it, sends with its own address of the link.
 */
static __always_inline bool is_foreign(const struct __sk_buff *skb, const struct device *device)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u8 *sender = data + ETH_ALEN;

	if (!device->link_header || data + ETH_HLEN > end)
		return false;
	for (int n = 0; n < ETH_ALEN; n++) {
		if (sender[n] != device->mac[n])
			return true;
	}
	return false;
}

/* Whether a packet stays on its link, or comes from no address that could be replaced. */
static __always_inline bool of_link(const struct packet *p)
{
	__u32 source = bpf_ntohl(p->source.word[0]);
	__u32 destination = bpf_ntohl(p->destination.word[0]);

	if (p->family == IPV4)
		return !source || destination >= 0xe0000000; /* multicast, reserved, broadcast */
	if (destination >> 24 == 0xff || source >> 22 == 0xfe80 >> 6)
		return true;
	return !p->source.word[0] && !p->source.word[1] && !p->source.word[2] &&
	       !p->source.word[3];
}

#endif
