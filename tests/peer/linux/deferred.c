// SPDX-License-Identifier: GPL-2.0
/* Work that is handed to an interrupt or behind one (irq_work, tasklet), and timers. */
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>

#include "measure.h"

/* A handler's first instruction, and the last of the one before it. */
static u32 there, left;

static void stamps_irq_work(struct irq_work *unused)
{
	read_counter(there);
}

static void empty_irq_work(struct irq_work *unused)
{
}

static struct irq_work stamped_irq_work = IRQ_WORK_INIT_HARD(stamps_irq_work);
static struct irq_work quiet_irq_work = IRQ_WORK_INIT_HARD(empty_irq_work);

static noinline u32 irq_work_to_handler(void)
{
	start();
	irq_work_queue(&stamped_irq_work);
	return between(started, there);
}

static noinline u32 irq_work_and_back(void)
{
	return count(irq_work_queue(&quiet_irq_work));
}

static void stamps_tasklet(struct tasklet_struct *unused)
{
	read_counter(there);
}

static void empty_tasklet(struct tasklet_struct *unused)
{
}

static DECLARE_TASKLET(stamped_tasklet, stamps_tasklet);
static DECLARE_TASKLET(quiet_tasklet, empty_tasklet);

/* From a thread: without the pair around, ksoftirqd would be woken for it. */
static noinline u32 tasklet_to_handler(void)
{
	start();
	local_bh_disable();
	tasklet_schedule(&stamped_tasklet);
	local_bh_enable();
	return between(started, there);
}

static noinline u32 tasklet_and_back(void)
{
	return count(({
		local_bh_disable();
		tasklet_schedule(&quiet_tasklet);
		local_bh_enable();
	}));
}

static noinline u32 tasklet_schedule_alone(void)
{
	u32 taken;

	local_bh_disable();
	taken = count(tasklet_schedule(&quiet_tasklet));
	local_bh_enable();
	return taken;
}

static void schedules_tasklet(struct irq_work *unused)
{
	tasklet_schedule(&stamped_tasklet);
	read_counter(left);
}

static struct irq_work scheduling_irq_work = IRQ_WORK_INIT_HARD(schedules_tasklet);

static noinline u32 interrupt_to_tasklet(void)
{
	irq_work_queue(&scheduling_irq_work);
	return between(left, there);
}

static noinline u32 interrupt_to_tasklet_and_back(void)
{
	return count(irq_work_queue(&scheduling_irq_work));
}

#define HOUR (3600ull * NSEC_PER_SEC)
#define ARMED 10000

static enum hrtimer_restart never(struct hrtimer *unused)
{
	return HRTIMER_NORESTART;
}

static struct hrtimer measured;

static void prepare_hrtimer(void)
{
	hrtimer_init(&measured, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	measured.function = never;
}

/* The tick is due before it, so that the clock is not set anew. */
static noinline u32 hrtimer_start_cancel(void)
{
	return count(({
		hrtimer_start(&measured, ns_to_ktime(2 * HOUR), HRTIMER_MODE_REL_PINNED_HARD);
		hrtimer_cancel(&measured);
	}));
}

/* The same beside 10,000 others, spread over ten hours; they stay. */
static void prepare_armed(void)
{
	struct hrtimer *others = vzalloc(array_size(ARMED, sizeof(*others)));
	unsigned int n;

	prepare_hrtimer();
	if (!others) {
		line("failed: no memory for the timers");
		return;
	}
	for (n = 0; n < ARMED; n++) {
		hrtimer_init(&others[n], CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
		others[n].function = never;
		hrtimer_start(&others[n], ns_to_ktime(HOUR + (n + 1) * (HOUR / 1000)),
			      HRTIMER_MODE_REL_PINNED_HARD);
	}
}

static void never_either(struct timer_list *unused)
{
}

static DEFINE_TIMER(wheel_timer, never_either);

static noinline u32 timer_mod_delete(void)
{
	return count(({
		mod_timer(&wheel_timer, jiffies + 7200 * HZ);
		del_timer(&wheel_timer);
	}));
}

static u32 before, fired;
static struct hrtimer soon;

/* Keeps the interrupted loop's last reading, before the loop goes on. */
static enum hrtimer_restart stamps_hrtimer(struct hrtimer *unused)
{
	read_counter(there);
	before = started;
	WRITE_ONCE(fired, 1);
	return HRTIMER_NORESTART;
}

static void prepare_soon(void)
{
	hrtimer_init(&soon, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	soon.function = stamps_hrtimer;
}

/* From the last reading of the interrupted loop, which reads without pause: up to a round of it is counted as well. */
static noinline u32 hrtimer_expiry(void)
{
	WRITE_ONCE(fired, 0);
	hrtimer_start(&soon, ns_to_ktime(100 * NSEC_PER_USEC), HRTIMER_MODE_REL_PINNED_HARD);
	while (!READ_ONCE(fired))
		read_counter(started);
	return between(before, there);
}

static const struct row rows[] = {
	{ "irq_work::to_handler", irq_work_to_handler },
	{ "irq_work::and_back", irq_work_and_back },
	{ "tasklet::schedule", tasklet_schedule_alone },
	{ "tasklet::to_handler", tasklet_to_handler },
	{ "tasklet::and_back", tasklet_and_back },
	{ "tasklet::interrupt_return_to_handler", interrupt_to_tasklet },
	{ "tasklet::interrupt_to_handler_and_back", interrupt_to_tasklet_and_back },
	{ "timer::hrtimer_start_cancel", hrtimer_start_cancel, 0, prepare_hrtimer },
	{ "timer::wheel_mod_delete", timer_mod_delete },
	{ "timer::hrtimer_expiry", hrtimer_expiry, 1, prepare_soon },
	{ "timer::hrtimer_start_cancel_with_10000_armed", hrtimer_start_cancel, 0, prepare_armed },
};

const struct area deferred_area = AREA(rows);
