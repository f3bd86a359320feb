// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Runs tc programs on two CPUs at the same moment, again and again: by BPF_PROG_TEST_RUN. */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOM	 256 /* that a packet may get longer by */
#define OFFSETS	 64  /* by how little one may be later than the other, in turns of a loop */

/* One CPU's part: what it runs on each of its frames, and what comes of that. */
struct lane {
	int cpu, program;
	uint32_t ifindex, length;
	uint8_t *frames; /* each of them as it is afterwards */
	int32_t *verdicts;
};

struct runner {
	struct lane *lane;
	atomic_uint *here, *there;
	uint32_t count, side;
	int error;
};

static int run_once(const struct lane *lane, uint32_t number)
{
	uint8_t out[2048 + ROOM];
	struct __sk_buff context = {.ifindex = lane->ifindex};
	uint8_t *frame = lane->frames + (size_t)number * lane->length;
	union bpf_attr attr = {};

	attr.test.prog_fd = lane->program;
	attr.test.data_in = (uintptr_t)frame;
	attr.test.data_size_in = lane->length;
	attr.test.data_out = (uintptr_t)out;
	attr.test.data_size_out = sizeof(out);
	attr.test.repeat = 1;
	attr.test.ctx_in = (uintptr_t)&context;
	attr.test.ctx_size_in = sizeof(context);
	if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
		return -1;
	memcpy(frame, out, lane->length);
	lane->verdicts[number] = (int32_t)attr.test.retval;
	return 0;
}

static void *run(void *context)
{
	struct runner *runner = context;
	cpu_set_t one;

	/* While one waits for the other, nobody else may have a CPU, or it waits for long. */
	pthread_setschedparam(pthread_self(), SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	CPU_ZERO(&one);
	CPU_SET(runner->lane->cpu, &one);
	if (pthread_setaffinity_np(pthread_self(), sizeof(one), &one))
		runner->error = -1;
	for (uint32_t n = 0; n < runner->count; n++) {
		atomic_store(runner->here, n + 1);
		/* Another test may do the same at this moment. */
		for (uint32_t turns = 0; atomic_load(runner->there) < n + 1; turns++) {
			if (turns % 4096 == 4095)
				sched_yield();
		}
		if (n % 2 == runner->side) {
			for (volatile uint32_t late = n / 2 % OFFSETS; late; late--)
				;
		}
		if (run_once(runner->lane, n))
			runner->error = -1;
	}
	return NULL;
}

/* Let both run `count` times, pair after pair. Returns 0, or -1 where the kernel refused. */
int race(struct lane *first, struct lane *second, uint32_t count)
{
	atomic_uint reached[2] = {0, 0};
	struct runner runners[] = {
		{first, &reached[0], &reached[1], count, 0, 0},
		{second, &reached[1], &reached[0], count, 1, 0},
	};
	pthread_t threads[2];

	for (int n = 0; n < 2; n++) {
		if (pthread_create(&threads[n], NULL, run, &runners[n]))
			return -1; /* the first one waits for ever: the test has failed anyway */
	}
	for (int n = 0; n < 2; n++)
		pthread_join(threads[n], NULL);
	return runners[0].error || runners[1].error ? -1 : 0;
}
