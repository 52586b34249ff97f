// SPDX-License-Identifier: GPL-2.0
/*
 * The measuring module: samples each row and prints the lines that the bench image prints, for the same reader.
 *
 *     known NAME wanted W read R
 *     row NAME samples N min A median B max C bound -
 *     bench: N rows
 *
 * All is done while the module is loaded, by a thread of the class SCHED_FIFO on the first processor. Its threads stay: the machine is ended
 * by whoever loaded it.
 */
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/sort.h>
#include <uapi/linux/sched/types.h>

#include "measure.h"

#define SAMPLES 1024
#define WARM_UP 32
/* Samples that may be taken again, for one that counts: rows whose samples never do are an error, not a hang. */
#define MOST_AGAIN 1000

u32 started, stopped, cost;

static u32 samples[SAMPLES];

/* Interrupts of the local timers of all processors. */
static u32 clocks(void)
{
	unsigned int cpu;
	u32 sum = 0;

	for_each_online_cpu(cpu)
		sum += READ_ONCE(per_cpu(irq_stat, cpu).apic_timer_irqs);
	return sum;
}

/* One into which no interrupt fell that is not the operation's own: the bench takes such samples again as well. */
static bool undisturbed(const struct row *row, u32 *sample)
{
	unsigned int tries;

	for (tries = 0; tries < MOST_AGAIN; tries++) {
		u32 before = clocks();

		*sample = row->probe();
		if (*sample != AGAIN && clocks() - before == row->clocks)
			return true;
	}
	line("failed: no sample of %s counts", row->name);
	return false;
}

static int by_size(const void *a, const void *b)
{
	u32 left = *(const u32 *)a, right = *(const u32 *)b;

	return left < right ? -1 : left > right;
}

static bool measure(const struct row *row)
{
	unsigned int n;

	if (row->prepare)
		row->prepare();
	for (n = 0; n < WARM_UP; n++)
		if (!undisturbed(row, &samples[0]))
			return false;
	for (n = 0; n < SAMPLES; n++)
		if (!undisturbed(row, &samples[n]))
			return false;
	sort(samples, SAMPLES, sizeof(samples[0]), by_size, NULL);
	line("row %s samples %u min %u median %u max %u bound -", row->name, SAMPLES, samples[0],
	     samples[SAMPLES / 2], samples[SAMPLES - 1]);
	return true;
}

/* The number of rows, or a negative one after the first that cannot be measured. */
static int measure_all(const struct area *area)
{
	unsigned int n;

	for (n = 0; n < area->count; n++)
		if (!measure(&area->rows[n]))
			return -EIO;
	return area->count;
}

static void learn_cost(void)
{
	unsigned int n;

	/* The first readings may meet something that happens once; the last counts. */
	for (n = 0; n < 16; n++) {
		start();
		stop();
		cost = stopped - started;
	}
}

static int all(void)
{
	const struct area *alone[] = { &local_area, &deferred_area, &threads_area };
	const struct area *idle[] = { &wakes_area }, *parked[] = { &calls_area };
	int rows = 0, more;
	unsigned int n;

#define MEASURE(areas)                                \
	for (n = 0; n < ARRAY_SIZE(areas); n++) {     \
		more = measure_all(areas[n]);         \
		if (more < 0)                         \
			return more;                  \
		rows += more;                         \
	}

	learn_cost();
	if (num_online_cpus() == 1) {
		if (!calibrate_local())
			return -EIO;
		MEASURE(alone);
	} else {
		MEASURE(idle);
		park_others();
		if (!calibrate_between())
			return -EIO;
		MEASURE(parked);
	}
	line("bench: %d rows", rows);
	return 0;
}

static DECLARE_COMPLETION(done);
static int result;

static int main_thread(void *unused)
{
	sched_set_fifo_low(current);
	result = all();
	complete(&done);
	for (;;)
		schedule_timeout_interruptible(MAX_SCHEDULE_TIMEOUT);
	return 0;
}

void partner(int (*routine)(void *), unsigned int processor, enum level level)
{
	struct task_struct *thread = kthread_create(routine, NULL, "partner");

	if (IS_ERR(thread)) {
		/* Its row has no sample then, and that is an error. */
		line("failed: no memory for a thread");
		return;
	}
	kthread_bind(thread, processor);
	if (level == EQUAL)
		sched_set_fifo_low(thread);
	if (level == ABOVE)
		sched_set_fifo(thread);
	wake_up_process(thread);
	/* It runs up to its wait. */
	schedule_timeout_uninterruptible(2);
}

void settle(void)
{
	unsigned int n;

	for (n = 0; n < 500; n++)
		cpu_relax();
}

static int __init load(void)
{
	struct task_struct *thread = kthread_create(main_thread, NULL, "measure");

	if (IS_ERR(thread))
		return PTR_ERR(thread);
	kthread_bind(thread, 0);
	wake_up_process(thread);
	wait_for_completion(&done);
	return result;
}

module_init(load);
MODULE_DESCRIPTION("Counts the instructions of kernel operations under QEMU's instruction counter");
MODULE_LICENSE("GPL");
