// SPDX-License-Identifier: GPL-2.0
/* Code of known length must read its own length, exactly, alone and with interrupts off; and what a target executes is counted. */
#include <linux/smp.h>
#include <linux/sort.h>

#include "measure.h"

#define ROUNDS 1000
#define LENGTH (1 + 2 * ROUNDS)
#define REPEATS 100

static __always_inline void loop(u32 rounds)
{
	asm volatile("1: decl %0\n\tjnz 1b" : "+r"(rounds));
}

static u32 nothing(void)
{
	return count((void)0);
}

static u32 one(void)
{
	return count(asm volatile("nop"));
}

static noinline u32 known_loop(void)
{
	return count(asm volatile("movl %0, %%ecx\n1: decl %%ecx\n\tjnz 1b" : : "i"(ROUNDS) : "ecx"));
}

static u32 known_loop_with_interrupts_off(void)
{
	unsigned long flags;
	u32 read;

	local_irq_save(flags);
	read = known_loop();
	local_irq_restore(flags);
	return read;
}

static int by_size(const void *a, const void *b)
{
	u32 left = *(const u32 *)a, right = *(const u32 *)b;

	return left < right ? -1 : left > right;
}

/* Half of the readings have no more: an interrupt of the timer may fall into some. */
static bool known(const char *name, u32 wanted, u32 (*read)(void))
{
	static u32 readings[REPEATS];
	unsigned int n;

	for (n = 0; n < REPEATS; n++)
		readings[n] = read();
	sort(readings, REPEATS, sizeof(readings[0]), by_size, NULL);
	line("known %s wanted %u read %u", name, wanted, readings[REPEATS / 2]);
	return readings[REPEATS / 2] == wanted;
}

bool calibrate_local(void)
{
	return known("nothing", 0, nothing) && known("one-instruction", 1, one) &&
	       known("loop", LENGTH, known_loop) &&
	       known("loop-with-interrupts-off", LENGTH, known_loop_with_interrupts_off);
}

static u32 rounds_there;

static void loops(void *unused)
{
	loop(READ_ONCE(rounds_there));
}

static noinline u32 called(u32 rounds)
{
	WRITE_ONCE(rounds_there, rounds);
	return count(smp_call_function_single(1, loops, NULL, 1));
}

/* More rounds on the target are more instructions here, two for each. */
static u32 more_rounds(void)
{
	u32 once = called(1);

	return called(ROUNDS) - once;
}

static u32 loop_while_others_halt(void)
{
	called(1);
	return known_loop();
}

bool calibrate_between(void)
{
	return calibrate_local() && known("loop-on-the-target", 2 * (ROUNDS - 1), more_rounds) &&
	       known("loop-while-others-halt", LENGTH, loop_while_others_halt);
}
