// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sends a frame very many times, each time with other words in it:
 *
 *     flood DEVICE COUNT RATE FRAME FIELD...
 *
 * RATE is frames a second, 0 for as many as can be; FRAME is hexadecimal. A FIELD is
 * OFFSET:VALUES:SUM[:SUM], a word of 16 bits that takes so many values from what it is in
 * FRAME on, and where the checksums over it are. The first field goes through all its values before the second takes
 * its next one, and so on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LONGEST	  256
#define AT_ONCE	  256
#define MOST	  8
#define MOST_SUMS 2

struct field {
	unsigned offset, values, sums[MOST_SUMS], count;
};

static uint8_t frame[LONGEST], frames[AT_ONCE][LONGEST];
static struct field fields[MOST];
static unsigned length, used;

static uint16_t word_at(const uint8_t *data, unsigned offset)
{
	return data[offset] << 8 | data[offset + 1];
}

static void put_word(uint8_t *data, unsigned offset, uint16_t word)
{
	data[offset] = word >> 8;
	data[offset + 1] = word;
}

/* RFC 1624, equation 3. */
static uint16_t resummed(uint16_t sum, uint16_t before, uint16_t after)
{
	uint32_t new = (uint16_t)~sum + (uint32_t)(uint16_t)~before + after;

	new = (new & 0xffff) + (new >> 16);
	return ~((new & 0xffff) + (new >> 16));
}

static void make(uint8_t *data, uint64_t number)
{
	memcpy(data, frame, length);
	for (struct field *f = fields; f < fields + used; f++) {
		uint16_t before = word_at(frame, f->offset);
		uint16_t after = before + number % f->values;

		number /= f->values;
		put_word(data, f->offset, after);
		for (unsigned n = 0; n < f->count; n++)
			put_word(data, f->sums[n],
				 resummed(word_at(data, f->sums[n]), before, after));
	}
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void wait_for_turn(double when)
{
	double left = when - seconds();
	struct timespec span = {.tv_sec = left, .tv_nsec = (left - (long)left) * 1e9};

	if (left > 0)
		nanosleep(&span, NULL);
}

static void send_all(int to, struct mmsghdr *messages, unsigned count)
{
	struct pollfd writable = {.fd = to, .events = POLLOUT};
	unsigned sent = 0;

	while (sent < count) {
		int went = sendmmsg(to, messages + sent, count - sent, 0);

		if (went > 0)
			sent += went;
		else if (errno == ENOBUFS || errno == EAGAIN)
			poll(&writable, 1, 1);
		else
			err(1, "sendmmsg");
	}
}

static void read_frame(const char *text)
{
	while (length < LONGEST && sscanf(text + 2 * length, "%2hhx", &frame[length]) == 1)
		length++;
}

static void read_field(const char *text)
{
	struct field *f = &fields[used++];
	int found = sscanf(text, "%u:%u:%u:%u", &f->offset, &f->values, &f->sums[0], &f->sums[1]);

	if (found < 3 || f->offset + 2 > length || !f->values)
		errx(1, "no field: %s", text);
	f->count = found - 2;
}

int main(int count, char **words)
{
	struct mmsghdr messages[AT_ONCE] = {};
	struct iovec vectors[AT_ONCE];
	struct sockaddr_ll device = {.sll_family = AF_PACKET};
	int to = socket(AF_PACKET, SOCK_RAW, 0);

	if (count < 6 || count > 5 + MOST || to < 0)
		errx(1, "usage: flood DEVICE COUNT RATE FRAME FIELD...");
	read_frame(words[4]);
	device.sll_ifindex = if_nametoindex(words[1]);
	if (bind(to, (void *)&device, sizeof(device)))
		err(1, "%s", words[1]);
	for (int n = 5; n < count; n++)
		read_field(words[n]);
	for (int n = 0; n < AT_ONCE; n++) {
		vectors[n] = (struct iovec){frames[n], length};
		messages[n].msg_hdr.msg_iov = &vectors[n];
		messages[n].msg_hdr.msg_iovlen = 1;
	}

	uint64_t all = strtoull(words[2], NULL, 10), rate = strtoull(words[3], NULL, 10);
	double begin = seconds();

	for (uint64_t done = 0; done < all;) {
		unsigned some = all - done < AT_ONCE ? all - done : AT_ONCE;

		for (unsigned n = 0; n < some; n++)
			make(frames[n], done + n);
		if (rate)
			wait_for_turn(begin + (double)done / rate);
		send_all(to, messages, some);
		done += some;
	}
	printf("%.0f\n", all / (seconds() - begin));
	return 0;
}
