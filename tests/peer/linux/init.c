// SPDX-License-Identifier: GPL-2.0
/*
 * The peer's only process: says that user mode is reached, loads the measuring module, which prints its rows while it is loaded,
 * counts the interrupts of an idle machine, and ends QEMU with the status of the bench's exit device.
 *
 * The line of the processors is the one that the harness times a boot by. Static, without a shell or a second file beside the
 * module, so that what is timed is the kernel's boot.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* QEMU ends with twice the value and one: 33, as the kernel's own images do when all is well, and 35 when it is not. */
enum { EXIT_PORT = 0xf4, PASSED = 0x10, FAILED = 0x11 };
/* What the start has left to be done is done by the end of the first. */
enum { SETTLE_SECONDS = 30, IDLE_SECONDS = 20 };

static void leave(int value)
{
	if (ioperm(EXIT_PORT, 4, 1) == 0)
		outl(value, EXIT_PORT);
	for (;;)
		pause();
}

/* One write for each line, so that the kernel's own cannot come in between. The stamp is for the harness's reader. */
static void say(const char *format, ...)
{
	char line[200];
	int length = snprintf(line, sizeof(line), "[    0.000000 00] ");
	va_list arguments;

	va_start(arguments, format);
	length += vsnprintf(line + length, sizeof(line) - length, format, arguments);
	va_end(arguments);
	if (write(1, line, length) != length)
		leave(FAILED);
}

/* Interrupts of all processors since the start, those of the local APICs included. */
static unsigned long long interrupts(void)
{
	static char text[1 << 16];
	int file = open("/proc/stat", O_RDONLY);
	ssize_t length = read(file, text, sizeof(text) - 1);
	const char *line;

	close(file);
	if (length <= 0 || !(line = strstr(text, "\nintr ")))
		leave(FAILED);
	return strtoull(line + 6, NULL, 10);
}

static void write_to(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	if (file < 0 || write(file, text, strlen(text)) < 0) {
		say("failed: writing %s\n", path);
		leave(FAILED);
	}
	close(file);
}

int main(void)
{
	struct timespec settle = { .tv_sec = SETTLE_SECONDS }, idle = { .tv_sec = IDLE_SECONDS };
	struct utsname name;
	unsigned long long before;
	int module;

	say("online: %ld processors\n", sysconf(_SC_NPROCESSORS_ONLN));
	if (mount("proc", "/proc", "proc", 0, "") != 0 || uname(&name) != 0)
		leave(FAILED);
	say("peer: Linux %s\n", name.release);
	/* A FIFO thread that runs for long is not to be stopped: what is measured is it. */
	write_to("/proc/sys/kernel/sched_rt_runtime_us", "-1");

	nanosleep(&settle, NULL);
	before = interrupts();
	nanosleep(&idle, NULL);
	say("idle: %llu interrupts in %d seconds\n", interrupts() - before, IDLE_SECONDS);

	module = open("/measure.ko", O_RDONLY);
	if (module < 0 || syscall(SYS_finit_module, module, "", 0) != 0) {
		say("failed: loading the module: %s\n", strerror(errno));
		leave(FAILED);
	}
	leave(PASSED);
}
