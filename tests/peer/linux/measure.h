/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Reading the instruction counter, and what a row is: as in the bench image (tests/bench/src/measure.rs, rows.rs), so that both
 * columns mean the same.
 *
 * An operation stands between two readings, inlined. A reading is RDTSC and one store of its low half into a fixed place. The first
 * one declares every register changed, so that no part of the operation is prepared in front of it; both are ordered with all that
 * touches memory. What two readings in a row read is subtracted, and calibrate.c shows with code of known length that this is exact.
 */
#ifndef MEASURE_H
#define MEASURE_H

#include <linux/kthread.h>
#include <linux/sched.h>
#include <linux/types.h>

/* The reading that an operation begins with, and the one that it ends with; the difference of two in a row. */
extern u32 started, stopped, cost;

#define read_counter(place, ...)                                          \
	asm volatile("rdtsc\n\tmovl %%eax, %0"                            \
		     : "=m"(place)                                        \
		     :                                                    \
		     : "eax", "edx", "memory", ##__VA_ARGS__)

#define start() \
	read_counter(started, "rbx", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
#define stop() read_counter(stopped)

static inline u32 between(u32 first, u32 last)
{
	return last - first - cost;
}

/* What `operation` executes. */
#define count(operation)                     \
	({                                   \
		start();                     \
		operation;                   \
		stop();                      \
		between(started, stopped);   \
	})

/* A sample that is to be taken again. */
#define AGAIN U32_MAX

struct row {
	/* `area::operation`: by it the harness finds the partner among the bench's rows. */
	const char *name;
	/* Executes the operation once, and returns the instructions that it took. */
	u32 (*probe)(void);
	/* Interrupts of the local timer that are part of it. */
	u32 clocks;
	/* Called before the first sample, if there is one. */
	void (*prepare)(void);
};

struct area {
	const struct row *rows;
	unsigned int count;
};

#define AREA(array) { array, ARRAY_SIZE(array) }

extern const struct area local_area, deferred_area, threads_area, wakes_area, calls_area;

/* A line as the bench's: with the stamp that the harness takes off. */
#define line(format, ...) printk(KERN_EMERG "[    0.000000 00] " format "\n", ##__VA_ARGS__)

/* Code of known length reads its length, or no number of this boot means anything. */
bool calibrate_local(void);
bool calibrate_between(void);

/* From here on the other processors are halted in a loop of two instructions. */
void park_others(void);
#define PARKED_LENGTH 2

/* A thread that stays, on that processor: under a thread of the measuring one's class and priority, or above it. */
enum level { FAIR, EQUAL, ABOVE };
void partner(int (*routine)(void *), unsigned int processor, enum level level);

/* Long enough for other processors to become idle: each PAUSE is a turn of theirs. */
void settle(void);

#endif
