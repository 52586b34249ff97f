// SPDX-License-Identifier: GPL-2.0
/*
 * Threads and waits on one processor. The partners are of the class SCHED_FIFO, of this thread's priority or above it; each waits
 * when a row begins, so one that is not asked costs nothing. The last row is of the fair class, which most threads are of.
 */
#include <linux/completion.h>
#include <linux/irq_work.h>
#include <linux/semaphore.h>
#include <linux/sched/task.h>
#include <linux/swait.h>
#include <linux/wait.h>

#include "measure.h"

static DECLARE_COMPLETION(yield_asked);

/* Waits to be asked, gives the processor back, and stamps when it has it again. */
static int yields(void *unused)
{
	for (;;) {
		wait_for_completion(&yield_asked);
		yield();
		stop();
	}
	return 0;
}

static void prepare_yield(void)
{
	partner(yields, 0, EQUAL);
}

/* From one thread's call to the other's return, both in a yield. */
static noinline u32 yield_switch(void)
{
	complete(&yield_asked);
	yield();
	start();
	yield();
	return between(started, stopped);
}

static noinline u32 yield_to_nobody(void)
{
	return count(yield());
}

static DECLARE_COMPLETION(ran);

static int short_life(void *unused)
{
	complete(&ran);
	return 0;
}

/* Created, woken, run, ended and waited for. */
static noinline u32 create_run_stop(void)
{
	unsigned int failed = 0;
	u32 taken;

	taken = count(({
		struct task_struct *thread = kthread_create(short_life, NULL, "short");

		if (IS_ERR(thread)) {
			failed = 1;
		} else {
			get_task_struct(thread);
			kthread_bind(thread, 0);
			wake_up_process(thread);
			wait_for_completion(&ran);
			kthread_stop(thread);
			put_task_struct(thread);
		}
	}));
	return failed ? AGAIN : taken;
}

static DECLARE_COMPLETION(lonely);
static DECLARE_WAIT_QUEUE_HEAD(empty_queue);

static noinline u32 complete_without_waiter(void)
{
	reinit_completion(&lonely);
	return count(complete(&lonely));
}

static noinline u32 wake_up_without_waiter(void)
{
	return count(wake_up(&empty_queue));
}

static noinline u32 wait_for_completed(void)
{
	reinit_completion(&lonely);
	complete(&lonely);
	return count(wait_for_completion(&lonely));
}

static DECLARE_COMPLETION(higher);

static int stamps(void *unused)
{
	for (;;) {
		wait_for_completion(&higher);
		stop();
	}
	return 0;
}

static void prepare_higher(void)
{
	partner(stamps, 0, ABOVE);
}

/* From the signal to the return of the wait, in the thread that it wakes. */
static noinline u32 complete_to_higher(void)
{
	start();
	complete(&higher);
	return between(started, stopped);
}

static DECLARE_WAIT_QUEUE_HEAD(queue);
static int condition;

static int stamps_from_queue(void *unused)
{
	for (;;) {
		wait_event(queue, READ_ONCE(condition));
		stop();
		WRITE_ONCE(condition, 0);
	}
	return 0;
}

static void prepare_queue(void)
{
	partner(stamps_from_queue, 0, ABOVE);
}

static noinline u32 wake_up_to_higher(void)
{
	start();
	WRITE_ONCE(condition, 1);
	wake_up(&queue);
	return between(started, stopped);
}

static DECLARE_COMPLETION(there);
static DECLARE_COMPLETION(back);

static int answers(void *unused)
{
	for (;;) {
		wait_for_completion(&there);
		complete(&back);
	}
	return 0;
}

static void prepare_answers(void)
{
	partner(answers, 0, EQUAL);
}

static noinline u32 completion_round_trip(void)
{
	return count(({
		complete(&there);
		wait_for_completion(&back);
	}));
}

/* The handler's first instruction. */
static u32 entered;

static void completes(struct irq_work *unused)
{
	read_counter(entered);
	complete(&higher);
}

static struct irq_work completing = IRQ_WORK_INIT_HARD(completes);

static noinline u32 interrupt_to_thread(void)
{
	start();
	irq_work_queue(&completing);
	return between(started, stopped);
}

static noinline u32 handler_to_thread(void)
{
	irq_work_queue(&completing);
	return between(entered, stopped);
}

static struct semaphore semaphore = __SEMAPHORE_INITIALIZER(semaphore, 1);

static noinline u32 semaphore_pair(void)
{
	return count(({ down(&semaphore); up(&semaphore); }));
}

static u32 yielded;

static int yields_always(void *unused)
{
	for (;;) {
		yield();
		stop();
		WRITE_ONCE(yielded, yielded + 1);
	}
	return 0;
}

/* Nothing of the class SCHED_FIFO behind this. */
static void prepare_fair(void)
{
	sched_set_normal(current, 0);
	partner(yields_always, 0, FAIR);
}

/* A yield of this class need not switch: those samples count in which it did, once there and once back. */
static noinline u32 yield_switch_fair(void)
{
	u32 before = READ_ONCE(yielded);

	start();
	yield();
	return READ_ONCE(yielded) - before == 1 ? between(started, stopped) : AGAIN;
}

static const struct row rows[] = {
	{ "threads::yield_switch", yield_switch, 0, prepare_yield },
	{ "threads::yield_to_nobody", yield_to_nobody },
	{ "waits::complete_without_waiter", complete_without_waiter },
	{ "waits::wake_up_without_waiter", wake_up_without_waiter },
	{ "waits::wait_for_completed", wait_for_completed },
	{ "waits::complete_to_higher_thread", complete_to_higher, 0, prepare_higher },
	{ "waits::wake_up_to_higher_thread", wake_up_to_higher, 0, prepare_queue },
	{ "waits::completion_round_trip", completion_round_trip, 0, prepare_answers },
	{ "waits::interrupt_to_thread", interrupt_to_thread },
	{ "waits::handler_to_thread", handler_to_thread },
	{ "waits::semaphore_pair", semaphore_pair },
	{ "threads::create_run_stop", create_run_stop },
	{ "threads::yield_switch_fair", yield_switch_fair, 0, prepare_fair },
};

const struct area threads_area = AREA(rows);
