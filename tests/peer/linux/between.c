// SPDX-License-Identifier: GPL-2.0
/*
 * Between processors: counts are sums over all of them, since under the instruction counter they run in turn on one thread of the host.
 * First wakes, of a processor in the kernel's own idle loop; then calls, to processors that a thread halts in a loop of two
 * instructions, as the bench parks its own. The way from an interrupt's end into that halt is subtracted.
 */
#include <linux/completion.h>
#include <linux/smp.h>

#include "measure.h"

static DECLARE_COMPLETION(stamped);
static DECLARE_COMPLETION(asked);
static DECLARE_COMPLETION(back);
static u32 stamps_made;

static unsigned int last_processor(void)
{
	return num_online_cpus() - 1;
}

static int stamps(void *unused)
{
	for (;;) {
		wait_for_completion(&stamped);
		stop();
		smp_store_release(&stamps_made, stamps_made + 1);
	}
	return 0;
}

static int answers(void *unused)
{
	for (;;) {
		wait_for_completion(&asked);
		complete(&back);
	}
	return 0;
}

static void prepare_stamps(void)
{
	partner(stamps, last_processor(), EQUAL);
	settle();
}

static void prepare_answers(void)
{
	partner(answers, last_processor(), EQUAL);
	settle();
}

/* From the signal here to the return of the wait there. */
static noinline u32 complete_to_idle(void)
{
	u32 before = stamps_made;

	start();
	complete(&stamped);
	while (smp_load_acquire(&stamps_made) == before)
		cpu_relax();
	settle();
	return between(started, stopped);
}

/* This processor is idle as well while it waits. */
static noinline u32 round_trip(void)
{
	u32 taken = count(({
		complete(&asked);
		wait_for_completion(&back);
	}));

	settle();
	return taken;
}

static const struct row wake_rows[] = {
	{ "wakes::complete_to_idle_processor", complete_to_idle, 0, prepare_stamps },
	{ "wakes::completion_round_trip", round_trip, 0, prepare_answers },
};

const struct area wakes_area = AREA(wake_rows);

static int parks(void *unused)
{
	for (;;)
		asm volatile("hlt");
	return 0;
}

void park_others(void)
{
	unsigned int cpu;

	for_each_online_cpu(cpu)
		if (cpu != smp_processor_id())
			partner(parks, cpu, FAIR);
	settle();
}

static void empty(void *unused)
{
}

static u32 reached;

static void stamps_call(void *unused)
{
	read_counter(reached);
}

static noinline u32 call_one(void)
{
	return count(smp_call_function_single(1, empty, NULL, 1)) - PARKED_LENGTH;
}

static noinline u32 call_one_to_function(void)
{
	start();
	smp_call_function_single(1, stamps_call, NULL, 1);
	return between(started, reached);
}

static noinline u32 call_all(void)
{
	return count(on_each_cpu(empty, NULL, 1)) - PARKED_LENGTH * (num_online_cpus() - 1);
}

static noinline u32 call_self(void)
{
	return count(smp_call_function_single(0, empty, NULL, 1));
}

static const struct row call_rows[] = {
	{ "ipi::call_one", call_one },
	{ "ipi::call_one_to_function", call_one_to_function },
	{ "ipi::call_all_of_4", call_all },
	{ "ipi::call_self", call_self },
};

const struct area calls_area = AREA(call_rows);
