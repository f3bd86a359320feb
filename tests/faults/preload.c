/* What a program gets from a node that is not as it should be: another wall clock, a kernel
 * without nat for IPv6, or one without IPv6 at all. Loaded by LD_PRELOAD; what is wrong stands in
 * the file that IPMASQ_TEST_NODE names, which may be changed while the program runs.
 *
 * What the kernel answers is its own word where that can be: a base chain of IPv6 is asked for
 * with a type that no kernel has.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct node {
	long long ahead; /* seconds of the wall clock */
	int no_ipv6_nat;
	int no_ipv6;
};

static const volatile struct node *node;

__attribute__((constructor)) static void find(void)
{
	const char *path = getenv("IPMASQ_TEST_NODE");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *at;

	if (file < 0)
		return;
	at = mmap(NULL, sizeof(*node), PROT_READ, MAP_SHARED, file, 0);
	if (at != MAP_FAILED)
		node = at;
	close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	long result = syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && node && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += node->ahead;
	return (int)result;
}

time_t time(time_t *to)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (to)
		*to = now.tv_sec;
	return now.tv_sec;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
	struct timespec now;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	to->tv_sec = now.tv_sec;
	to->tv_usec = now.tv_nsec / 1000;
	return 0;
}

/* A batch of netlink: each base chain of IPv6 with the type `nat` gets one that is not there. */
static void without_nat(char *data, size_t size)
{
	size_t at = 0;

	while (at + NLMSG_HDRLEN + sizeof(struct nfgenmsg) <= size) {
		struct nlmsghdr message;
		struct nfgenmsg about;
		size_t attribute, end;

		memcpy(&message, data + at, sizeof(message));
		if (message.nlmsg_len < NLMSG_HDRLEN || at + message.nlmsg_len > size)
			return;
		memcpy(&about, data + at + NLMSG_HDRLEN, sizeof(about));
		end = at + message.nlmsg_len;
		attribute = at + NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(about));
		if (message.nlmsg_type != (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN) ||
		    about.nfgen_family != AF_INET6)
			attribute = end;
		while (attribute + NLA_HDRLEN <= end) {
			struct nlattr head;

			memcpy(&head, data + attribute, sizeof(head));
			if (head.nla_len < NLA_HDRLEN)
				return;
			if ((head.nla_type & NLA_TYPE_MASK) == NFTA_CHAIN_TYPE &&
			    !memcmp(data + attribute + NLA_HDRLEN, "nat", 3))
				data[attribute + NLA_HDRLEN] = '-';
			attribute += NLA_ALIGN(head.nla_len);
		}
		at += NLMSG_ALIGN(message.nlmsg_len);
	}
}

ssize_t sendmsg(int to, const struct msghdr *message, int flags)
{
	struct msghdr whole = *message;
	struct iovec one = {0};
	ssize_t result;
	size_t i;

	if (!node || !node->no_ipv6_nat)
		return syscall(SYS_sendmsg, to, message, flags);
	for (i = 0; i < message->msg_iovlen; i++)
		one.iov_len += message->msg_iov[i].iov_len;
	one.iov_base = malloc(one.iov_len + 1);
	for (one.iov_len = 0, i = 0; i < message->msg_iovlen; i++) {
		memcpy((char *)one.iov_base + one.iov_len, message->msg_iov[i].iov_base,
		       message->msg_iov[i].iov_len);
		one.iov_len += message->msg_iov[i].iov_len;
	}
	without_nat(one.iov_base, one.iov_len);
	whole.msg_iov = &one;
	whole.msg_iovlen = 1;
	result = syscall(SYS_sendmsg, to, &whole, flags);
	free(one.iov_base);
	return result;
}

ssize_t sendto(int to, const void *data, size_t size, int flags, const struct sockaddr *address,
	       socklen_t length)
{
	struct iovec one = {(void *)data, size};
	struct msghdr message = {
		.msg_name = (void *)address, .msg_namelen = length, .msg_iov = &one, .msg_iovlen = 1};

	if (!node || !node->no_ipv6_nat)
		return syscall(SYS_sendto, to, data, size, flags, address, length);
	return sendmsg(to, &message, flags);
}

ssize_t send(int to, const void *data, size_t size, int flags)
{
	return sendto(to, data, size, flags, NULL, 0);
}

/* The names of tables begin what ip6_tables is asked: struct ip6t_getinfo, ip6t_replace. */
static int asks_for_nat(int level, int option, const void *value)
{
	return node && node->no_ipv6_nat && level == IPPROTO_IPV6 && option >= 64 && option <= 65 &&
	       value && !strncmp(value, "nat", 4);
}

int getsockopt(int of, int level, int option, void *restrict value, socklen_t *restrict size)
{
	if (asks_for_nat(level, option, value)) {
		errno = ENOENT;
		return -1;
	}
	return (int)syscall(SYS_getsockopt, of, level, option, value, size);
}

int setsockopt(int of, int level, int option, const void *value, socklen_t size)
{
	if (option == 64 && asks_for_nat(level, option, value)) {
		errno = ENOENT;
		return -1;
	}
	return (int)syscall(SYS_setsockopt, of, level, option, value, size);
}

int socket(int family, int kind, int protocol)
{
	if (node && node->no_ipv6 && family == AF_INET6) {
		errno = EAFNOSUPPORT;
		return -1;
	}
	return (int)syscall(SYS_socket, family, kind, protocol);
}
