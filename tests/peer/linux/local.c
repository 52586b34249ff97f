// SPDX-License-Identifier: GPL-2.0
/* What one thread does alone: preemption and interrupts off, locks that nobody else wants, memory, the time. */
#include <linux/interrupt.h>
#include <linux/gfp.h>
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/semaphore.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

#include "measure.h"

static noinline u32 preempt_off_on(void)
{
	return count(({ preempt_disable(); preempt_enable(); }));
}

static noinline u32 irq_off_on(void)
{
	unsigned long flags;

	return count(({ local_irq_save(flags); local_irq_restore(flags); }));
}

static noinline u32 softirq_off_on(void)
{
	return count(({ local_bh_disable(); local_bh_enable(); }));
}

static DEFINE_SPINLOCK(spin_lock_);
static DEFINE_RWLOCK(rw_lock);
static DEFINE_MUTEX(mutex);
static DECLARE_RWSEM(rwsem);

static noinline u32 spin(void)
{
	return count(({ spin_lock(&spin_lock_); spin_unlock(&spin_lock_); }));
}

static noinline u32 spin_bh(void)
{
	return count(({ spin_lock_bh(&spin_lock_); spin_unlock_bh(&spin_lock_); }));
}

static noinline u32 spin_irqsave(void)
{
	unsigned long flags;

	return count(({ spin_lock_irqsave(&spin_lock_, flags); spin_unlock_irqrestore(&spin_lock_, flags); }));
}

static noinline u32 rw_read_bh(void)
{
	return count(({ read_lock_bh(&rw_lock); read_unlock_bh(&rw_lock); }));
}

static noinline u32 rw_write_bh(void)
{
	return count(({ write_lock_bh(&rw_lock); write_unlock_bh(&rw_lock); }));
}

static noinline u32 mutex_pair(void)
{
	return count(({ mutex_lock(&mutex); mutex_unlock(&mutex); }));
}

static noinline u32 rwsem_write(void)
{
	return count(({ down_write(&rwsem); up_write(&rwsem); }));
}

static noinline u32 rwsem_read(void)
{
	return count(({ down_read(&rwsem); up_read(&rwsem); }));
}

/* The size is not known to the compiler, as in most calls. */
#define KMALLOC(bytes)                                     \
	static noinline u32 kmalloc_##bytes(void)          \
	{                                                  \
		size_t size = bytes;                       \
		void *block;                               \
                                                           \
		OPTIMIZER_HIDE_VAR(size);                  \
		return count(({                            \
			block = kmalloc(size, GFP_ATOMIC); \
			kfree(block);                      \
		}));                                       \
	}

KMALLOC(64)
KMALLOC(1000)
KMALLOC(4096)
KMALLOC(8192)

static noinline u32 page(void)
{
	struct page *page;

	return count(({
		page = alloc_page(GFP_ATOMIC);
		if (page)
			__free_page(page);
	}));
}

static noinline u32 map_and_unmap_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	void *address;
	u32 taken;

	if (!page)
		return AGAIN;
	taken = count(({
		address = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
		vunmap(address);
	}));
	__free_page(page);
	return taken;
}

static u64 kept;

static noinline u32 monotonic_time(void)
{
	return count(kept = ktime_get_ns());
}

static noinline u32 real_time(void)
{
	return count(kept = ktime_get_real_ns());
}

static const struct row rows[] = {
	{ "preempt::off_on", preempt_off_on },
	{ "softirq::off_on", softirq_off_on },
	{ "irq::off_on", irq_off_on },
	{ "locks::spin", spin },
	{ "locks::spin_bh", spin_bh },
	{ "locks::spin_irqsave", spin_irqsave },
	{ "locks::read_bh", rw_read_bh },
	{ "locks::write_bh", rw_write_bh },
	{ "locks::mutex", mutex_pair },
	{ "locks::rwsem_write", rwsem_write },
	{ "locks::rwsem_read", rwsem_read },
	{ "memory::kmalloc_64", kmalloc_64 },
	{ "memory::kmalloc_1000", kmalloc_1000 },
	{ "memory::kmalloc_4096", kmalloc_4096 },
	{ "memory::kmalloc_8192", kmalloc_8192 },
	{ "memory::page", page },
	{ "memory::vmap_vunmap", map_and_unmap_page },
	{ "time::monotonic", monotonic_time },
	{ "time::real", real_time },
};

const struct area local_area = AREA(rows);
