//! Deliberate bugchecks, one a boot: the harness compares the report (`crash=NAME`, ci/src/crash/list.rs).

use core::sync::atomic::{AtomicU64, Ordering};

use core::ptr::NonNull;

use kernel::ex::work::{Queue, WorkItem};
use kernel::ke::apc::{self, Apc};
use kernel::ke::bugcheck::{self, StopCode, bugcheck};
use kernel::ke::dpc::Dpc;
use kernel::ke::interrupt::{Claim, Interrupt, Request, ServiceRoutine, Share, Source};
use kernel::ke::{ipi, prcb, thread, tick, wait};
use kernel::mm::contiguous::{self, Place};
use kernel::mm::mdl_pages::{self, Choice, Operation};
use kernel::mm::paged::{self, PagedOwned};
use kernel::mm::pages::Page;
use kernel::mm::pool::{self, Tag, nt};
use kernel::mm::tables::{Access, Caching};
use kernel::mm::user::copy_to_user;
use kernel::mm::{physical, system_pte};
use sync::irql::{Clock, Device, Dispatch, High, Irql, Passive};
use sync::{InterruptLock, Once};

use crate::edu::LEVEL;
use crate::everywhere;
use crate::user_pages::{As, START, UserPages};
use crate::{clock, crash_io, crash_irql, crash_threads, crash_waits, memory_paged, memory_pager};

extern crate alloc;

/// Does it; unknown names are a bugcheck as well, with another code than any that is compared.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> ! {
    kernel::info!("crash: {name}");
    match name {
        "manual" => bugcheck(StopCode::ManuallyInitiatedCrash, [1, 2, 3, 4]),
        "stack_overflow" => {
            kernel::info!("{}", overflow(1));
        }
        "thread_stack_overflow" => {
            let options = thread::Options { name: thread::Name::new("deep"), ..Default::default() };
            let deep = thread::spawn(&options, |_, _| kernel::info!("{}", overflow(1)), 0, at);
            let _ = deep.map(|deep| wait::for_single(&*deep, None, at));
        }
        "panic" => panic!("asked for by the command line"),
        "recursion" => {
            let first = bugcheck::register_callback(|| {
                // SAFETY: none; that is the point: page zero is never mapped.
                unsafe { core::arch::asm!("mov al, [{}]", in(reg) 0_u64, out("al") _) };
            });
            assert!(first, "the only callback");
            bugcheck(StopCode::ManuallyInitiatedCrash, [5, 0, 0, 0]);
        }
        "two_at_once" => everywhere::run(at, |_, number| {
            bugcheck(StopCode::ManuallyInitiatedCrash, [6, number.into(), 0, 0])
        }),
        "unannounced_nmi" => {
            let target = prcb::get(prcb::count() - 1);
            // SAFETY: every processor's NMI stack is loaded.
            unsafe { arch::apic::send_nmi(target.map_or(0, |target| target.prcb().apic_id())) };
            kernel::ke::clock::stall(1_000_000);
        }
        "forgotten_raise" => {
            core::mem::forget(at.raise::<Dispatch>());
            at.check();
        }
        "write_text" => {
            let text = kernel::mm::layout::Segment::Text.range().start;
            // SAFETY: none; text is never writable.
            unsafe { core::arch::asm!("lock or byte ptr [{}], 0", in(reg) text) };
        }
        // SAFETY: none; this thread has no such registers.
        "extended_without_state" => unsafe { core::arch::asm!("xorps xmm0, xmm0") },
        "fault_at_dispatch" => {
            let _raised = at.raise::<Dispatch>();
            // SAFETY: none, as above.
            unsafe { core::arch::asm!("mov al, [{}]", in(reg) 16_u64, out("al") _) };
        }
        name if name.starts_with("user_") => touch_the_user(name, at),
        "fault_in_a_driver" => {
            // MOV AL, [RDI]; RET: in no text of the image, so a driver's.
            let Some(code) = outside_code(&[0x8A, 0x07, 0xC3], at) else { return_to_nobody() };
            let _raised = at.raise::<Dispatch>();
            // SAFETY: none; the address is never mapped.
            unsafe { core::arch::asm!("call {}", in(reg) code, in("rdi") 16_u64, out("al") _) };
        }
        "slow_dpc" => {
            static SLOW: Dpc = Dpc::new(never_ends);
            SLOW.queue([0; 2], at);
        }
        "endless_dpcs" => {
            static AGAIN: Dpc = Dpc::new(queues_itself);
            AGAIN.queue([0; 2], at);
        }
        "dpc_left_raised" => {
            static RAISES: Dpc = Dpc::new(forgets_a_raise);
            RAISES.queue([0; 2], at);
        }
        "callback_left_raised" => {
            if let Ok(callback) = kernel::ex::Callback::unnamed(true, at) {
                let routine = crate::ex_callbacks::callback_forgets_a_raise;
                // SAFETY: the routine uses nothing that it is told.
                let _registered =
                    unsafe { kernel::ex::Callback::register(&callback, routine, core::ptr::null_mut(), at) };
                callback.notify(0, 0, at);
            }
        }
        "work_item_left_raised" => {
            static RAISES: WorkItem = WorkItem::new(work_forgets_a_raise);
            assert!(RAISES.queue(Queue::Delayed, at), "it was not queued");
            let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000_000), at);
        }
        "object_released_above_dispatch" => {
            let (first, second) = (crate::ob::object(at), crate::ob::object(at));
            let mut raised = at.raise::<Dispatch>();
            // Somebody has asked for the worker already: the second one is found all the same.
            drop(first);
            let _raised = raised.raise::<Clock>();
            drop(second);
        }
        "thread_left_raised" => {
            let raises = thread::spawn(&thread::Options::default(), thread_forgets_a_raise, 0, at);
            assert!(raises.is_ok(), "a thread");
            let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000_000), at);
        }
        "threaded_dpc_left_raised" => {
            static RAISES: Dpc<Passive> = Dpc::new(threaded_forgets_a_raise);
            RAISES.queue([0; 2], at);
            let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000_000), at);
        }
        "flush_in_a_threaded_dpc" => {
            static FLUSHES: Dpc<Passive> = Dpc::new(|_, at, _| kernel::ke::dpc::flush(at));
            FLUSHES.queue([0; 2], at);
            let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000_000), at);
        }
        "dpc_left_uninterruptible" => {
            static CLEARS: Dpc = Dpc::new(clears_the_interrupt_flag);
            CLEARS.queue([0; 2], at);
        }
        "stuck_raised" => {
            clock::settle(at);
            let options = thread::Options { affinity: Some(2), ideal: Some(1), ..Default::default() };
            let stuck = thread::spawn(&options, |at, _| stays_raised_unwatched(false, at), 0, at);
            assert!(stuck.is_ok(), "a thread on the second processor");
            // Busy, as the clock's owner is.
            kernel::ke::clock::stall(30_000_000);
        }
        "endless_stays" => {
            static LONG: Dpc = Dpc::new(takes_its_time);
            // Each is below the limit, and over when this returns.
            loop {
                LONG.queue([0; 2], at);
            }
        }
        "stuck_raised_alone" => {
            clock::settle(at);
            stays_raised_unwatched(true, at)
        }
        "debugged_dpc" => {
            static RAN: AtomicU64 = AtomicU64::new(0);
            static SLOW: Dpc = Dpc::new(|_, _, _| {
                kernel::ke::clock::stall(400_000);
                RAN.fetch_add(1, Ordering::Relaxed);
            });
            SLOW.queue([0; 2], at);
            let raised = at.raise::<Dispatch>();
            kernel::ke::clock::stall(400_000);
            drop(raised);
            bugcheck(StopCode::ManuallyInitiatedCrash, [8, RAN.load(Ordering::Relaxed), 0, 0]);
        }
        // Whoever waits keeps the token of its raise, through a switch and all.
        "long_wait" => {
            let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000_000), at);
            bugcheck(StopCode::ManuallyInitiatedCrash, [9, 0, 0, 0]);
        }
        "long_raise" => {
            let _raised = at.raise::<High>();
            kernel::ke::clock::stall(300_000);
        }
        name if name.starts_with("paged_") => misuse_paged(name, at),
        name if name.starts_with("pool_") => misuse_pool(name, at),
        "endless_chain" => {
            interrupt(|(), _| Claim::Claimed, at);
        }
        "isr_at_another_level" => {
            interrupt(forgets_in_its_isr, at);
        }
        name if name.starts_with("apc_") => misuse_apcs(name, at),
        name if crash_io::run(name, at)
            || crash_irql::run(name, at)
            || crash_waits::run(name, at)
            || crash_threads::run(name, at) => {}
        name if name.starts_with("executable_") || name.starts_with("nt_pool_") => {
            misuse_executable(name, at);
        }
        name if name.starts_with("contiguous_") => misuse_contiguous(name, at),
        name if name.starts_with("mdl_") => misuse_mdl(name, at),
        "hang" => loop {
            arch::cpu::spin_hint();
        },
        _ => {}
    }
    bugcheck(StopCode::MaximumWaitObjectsExceeded, [0; 4])
}

/// APCs that return otherwise than they were called, and a thread that ends in a region.
fn misuse_apcs(name: &str, at: &mut Irql<Passive>) {
    static RAISES: Apc = Apc::new(apc_forgets_a_raise);
    static ENTERS: Apc<Passive> = Apc::new(apc_forgets_a_region);
    let me = thread::current(at).reference();
    match name {
        "apc_left_raised" => {
            RAISES.queue(&me, [0; 2], 0, at);
        }
        "apc_left_in_a_region" => {
            ENTERS.queue(&me, [0; 2], 0, at);
        }
        "apc_region_at_the_end_of_a_thread" => {
            core::mem::forget(apc::enter_guarded(at));
            thread::exit(kernel::rtl::NtStatus::SUCCESS, at);
        }
        _ => {}
    }
}

fn apc_forgets_a_raise(_: &'static Apc, at: &mut Irql<sync::irql::Apc>, _: [usize; 2]) {
    core::mem::forget(at.raise::<Dispatch>());
}

fn apc_forgets_a_region(_: &'static Apc<Passive>, at: &mut Irql<Passive>, _: [usize; 2]) {
    core::mem::forget(apc::enter_critical(at));
}

fn never_ends(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    loop {
        arch::cpu::spin_hint();
    }
}

/// Stays raised once no look of the watchdog is ahead here: one is until two limits have passed since the last work of DISPATCH, that of the
/// switch to this thread included. From then on nobody but the clock's owner, which this processor is or is not, has a reason to look.
fn stays_raised_unwatched(owns: bool, at: &mut Irql<Passive>) -> ! {
    for _ in 0..10 {
        // Who waits for this processor goes first: its turns would be such work.
        let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(1_000_000), at);
        for _ in 0..2_000 {
            // Samples find it at PASSIVE mostly: one of them does.
            kernel::ke::clock::stall(1_000);
            let mut raised = at.raise::<Dispatch>();
            let is_alone = {
                let mut high = raised.raise::<High>();
                !tick::is_watched(&mut high) && tick::armed_for_update(&mut high).is_some() == owns
            };
            if is_alone {
                stays_raised(&mut raised);
            }
        }
    }
    bugcheck(StopCode::MaximumWaitObjectsExceeded, [2, 0, 0, 0])
}

#[inline(never)]
fn stays_raised(_: &mut Irql<Dispatch>) -> ! {
    loop {
        // No call, so that whatever interrupts this finds it in here.
        core::hint::spin_loop();
    }
}

/// No call, so that whatever interrupts this finds it in here.
#[inline(never)]
fn takes_its_time(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    for _ in 0..100_000 {
        core::hint::spin_loop();
    }
}

fn queues_itself(dpc: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    dpc.queue([0; 2], at);
}

fn thread_forgets_a_raise(at: &mut Irql<Passive>, _: usize) {
    core::mem::forget(at.raise::<High>());
}

fn threaded_forgets_a_raise(_: &'static Dpc<Passive>, at: &mut Irql<Passive>, _: [usize; 2]) {
    core::mem::forget(at.raise::<High>());
}

fn work_forgets_a_raise(_: &'static WorkItem, at: &mut Irql<Passive>) {
    core::mem::forget(at.raise::<High>());
}

fn forgets_a_raise(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    core::mem::forget(at.raise::<High>());
}

fn forgets_in_its_isr(_: &mut (), at: &mut Irql<Device>) -> Claim {
    core::mem::forget(at.raise::<High>());
    Claim::Claimed
}

fn clears_the_interrupt_flag(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    // SAFETY: none; the flag belongs to whoever was interrupted, and the checked build says so.
    unsafe { arch::cpu::cli() };
}

/// Delivers one message, on a chain that could be shared, to `routine`.
fn interrupt(routine: ServiceRoutine<()>, at: &mut Irql<Passive>) {
    static LOCK: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    static OBJECT: Once<Interrupt<()>> = Once::new();
    let request =
        Request { source: Source::Message, level: LEVEL, share: Share::Shared, affinity: ipi::online() };
    if let Ok(route) = OBJECT.call_once(|| Interrupt::new(&LOCK, routine)).connect(&request, at) {
        // SAFETY: every device vector has the chains' handler.
        unsafe { arch::apic::send_self(route.vector) };
    }
}

/// Recurses for ever, with frames that can't be merged.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    if frame[0] == 0 { 0 } else { overflow(core::hint::black_box(depth + 1)) + frame[31] }
}

fn return_to_nobody() -> ! {
    bugcheck(StopCode::MaximumWaitObjectsExceeded, [1, 0, 0, 0])
}

/// Code on a page of its own: where it can be called.
fn outside_code(bytes: &[u8], at: &mut Irql<Passive>) -> Option<u64> {
    let page = physical::allocate_zeroed(at).ok()?.into_number();
    // SAFETY: our own page, for good.
    let mapping = unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), physical::address(page), bytes.len());
        system_pte::map(&[page], Access::Execute, at).ok()?
    };
    Some(mapping.address().addr().get() as u64)
}

/// Each way in which the kernel must not reach the user's memory.
fn touch_the_user(name: &str, at: &mut Irql<Passive>) {
    let Ok(pages) = UserPages::map(at) else { return };
    // SAFETY: none; each is refused by the processor.
    unsafe {
        match name {
            "user_smap" => core::arch::asm!("mov al, [{}]", in(reg) START, out("al") _),
            "user_smap_at_dispatch" => {
                let _raised = at.raise::<Dispatch>();
                core::arch::asm!("mov byte ptr [{}], 0", in(reg) START);
            }
            "user_smep" => core::arch::asm!("call {}", in(reg) START),
            "user_reserved_bit" => {
                pages.remap(0, As::Broken, at);
                core::arch::asm!("mov al, [{}]", in(reg) START, out("al") _);
            }
            // A copy without interrupts could not wait for a page.
            "user_copy_uninterruptible" => {
                pages.remap(0, As::Nothing, at);
                arch::cpu::cli();
                let _ = copy_to_user(START, &[1], at);
            }
            _ => {}
        }
    }
}

/// Each misuse of executable pool, and of pool by NT's names.
fn misuse_executable(name: &str, at: &mut Irql<Passive>) {
    const MINE: u32 = Tag::new(b"Mine").value();
    const OTHER: u32 = Tag::new(b"Othr").value();
    let kind = if name == "nt_pool_paged_at_dispatch" { 1 } else { 0 };
    let Some(block) = NonNull::new(nt::allocate_with_tag(kind, 100, MINE)) else { return };
    kernel::info!("block {block:?}");
    // SAFETY: none; each is found.
    unsafe {
        match name {
            // MOV BYTE PTR [RIP], 0: into its own page.
            "executable_writes_into_itself" => {
                block.cast::<[u8; 8]>().write_volatile([0xC6, 0x05, 0, 0, 0, 0, 0, 0xC3]);
                core::arch::asm!("call {}", in(reg) block.as_ptr());
            }
            // Above the levels at which others' calls are served.
            "executable_run_at_high" => {
                block.write_volatile(0xC3);
                let _raised = at.raise::<High>();
                core::arch::asm!("call {}", in(reg) block.as_ptr());
            }
            "executable_wrong_tag" => nt::free_with_tag(block, OTHER),
            "executable_freed_twice" => {
                nt::free_with_tag(block, MINE);
                nt::free_with_tag(block, MINE);
            }
            "nt_pool_paged_at_dispatch" => {
                let _raised = at.raise::<Dispatch>();
                nt::allocate_with_tag(1, 100, MINE);
            }
            "nt_pool_raises" => {
                nt::allocate2(nt::flags::PAGED | nt::flags::RAISE_ON_FAILURE, 1 << 45, MINE);
            }
            _ => {}
        }
    }
}

/// Each misuse of contiguous memory.
fn misuse_contiguous(name: &str, at: &mut Irql<Passive>) {
    let Ok(block) = contiguous::allocate(3 * 4096, Place::ANYWHERE, at) else { return };
    kernel::info!("block {block:?}");
    // SAFETY: none; both are found.
    unsafe {
        if name == "contiguous_freed_twice" {
            contiguous::free(block, at);
            contiguous::free(block, at);
        } else {
            contiguous::free(block.add(4096), at);
        }
    }
}

/// Each misuse of a locked page or its list.
fn misuse_mdl(name: &str, at: &mut Irql<Passive>) {
    if name == "mdl_pages_freed_mapped" {
        let choice = Choice { lowest: 0, highest: u64::MAX, skip: 0, leave_content: true, all: true };
        let Ok(mut mdl) = mdl_pages::allocate_pages(4096, &choice, at) else { return };
        kernel::info!("list {:?}", mdl.as_raw());
        // SAFETY: our own page.
        let _ = unsafe { mdl_pages::map(&mut mdl, Access::Write, Caching::WriteBack, at) };
        // SAFETY: allocated with its pages above, and left as it was.
        unsafe { mdl_pages::free_pages(&mut mdl, at) };
    }
    let Ok(page) = physical::allocate(at) else { return };
    let buffer = physical::address(page.number());
    let Ok(mut mdl) = mdl_pages::allocate(buffer, 100, at) else { return };
    kernel::info!("page {:#x}", page.number().number());
    kernel::info!("buffer {buffer:?}");
    kernel::info!("list {:?}", mdl.as_raw());
    if mdl_pages::probe_and_lock_nonpaged(&mut mdl, Operation::Write, at).is_err() {
        return;
    }
    match name {
        "mdl_page_freed" => physical::free(page, at),
        "mdl_unlocked_twice" => {
            mdl_pages::unlock(&mut mdl, at);
            mdl_pages::unlock(&mut mdl, at);
        }
        // SAFETY: none; it is refused.
        "mdl_freed" => unsafe { mdl_pages::free(mdl, at) },
        _ => {}
    }
}

/// Each misuse of paged pool, on the second page of a block of three.
#[inline(never)]
fn misuse_paged(name: &str, at: &mut Irql<Passive>) {
    const MINE: Tag = Tag::new(b"Mine");
    const OTHER: Tag = Tag::new(b"Othr");
    let size = if name.starts_with("paged_small") { 100 } else { 3 * 4096 };
    let Ok(block) = paged::allocate(MINE, size, at) else { return };
    let block = block.cast::<u8>();
    let inside = if size > 4096 { block.as_ptr().wrapping_add(4096 + 8) } else { block.as_ptr() };
    kernel::info!("block {block:?}");
    // SAFETY: none from here on, as for the pool.
    unsafe {
        match name {
            "paged_at_dispatch" => {
                let _raised = at.raise::<Dispatch>();
                inside.write_volatile(1);
            }
            // With `trim`: what was there is taken away by the raise.
            "paged_resident_at_dispatch" => {
                memory_paged::trim_elsewhere(at);
                inside.write_volatile(1);
                let _raised = at.raise::<Dispatch>();
                inside.read_volatile();
            }
            "paged_uninterruptible" => {
                arch::cpu::cli();
                inside.read_volatile();
            }
            "paged_unreadable" => memory_pager::unreadable(block, inside, at),
            "paged_use_after_free" => {
                inside.write_volatile(1);
                paged::free(block, MINE, at);
                inside.read_volatile();
            }
            "paged_executed" => core::arch::asm!("call {}", in(reg) inside),
            "paged_wrong_tag" => paged::free(block, OTHER, at),
            "paged_small_double_free" => {
                paged::free(block, MINE, at);
                paged::free(block, MINE, at);
            }
            "paged_small_overrun" => {
                block.add(100).write_volatile(0);
                paged::free(block, MINE, at);
            }
            "paged_dropped_at_dispatch" => {
                if let Ok(owned) = PagedOwned::try_new(MINE, 1_u64, at) {
                    let _raised = at.raise::<Dispatch>();
                    drop(owned);
                }
            }
            _ => {}
        }
    }
}

/// Each misuse of the pool, on a block of 100 bytes. The harness wants the second tag where one is reported.
#[inline(never)]
fn misuse_pool(name: &str, at: &mut Irql<Passive>) {
    const MINE: Tag = Tag::new(b"Mine");
    const OTHER: Tag = Tag::new(b"Othr");
    if name.starts_with("pool_special_") {
        pool::special::choose(Some(MINE), false);
    }
    let Ok(block) = pool::allocate(MINE, 100, at) else { return };
    let block = block.cast::<u8>();
    kernel::info!("block {block:?}");
    // SAFETY: none from here on; each of these breaks the pool's rules, and is found before it does harm.
    unsafe {
        match name {
            "pool_double_free" => {
                pool::free(block, MINE, at);
                pool::free(block, MINE, at);
            }
            "pool_wrong_tag" => pool::free(block, OTHER, at),
            "pool_overrun" => {
                block.add(100).write_volatile(0);
                pool::free(block, MINE, at);
            }
            "pool_underrun" => {
                let word = block.sub(8).cast::<u64>();
                kernel::info!("state {:#x}", word.read_volatile());
                block.sub(1).write_volatile(0);
                kernel::info!("damaged {:#x}", word.read_volatile());
                pool::free(block, MINE, at);
            }
            "pool_use_after_free" => {
                pool::free(block, MINE, at);
                block.add(50).write_volatile(0);
                // Until its turn to be reused comes.
                for _ in 0..1000 {
                    if let Ok(block) = pool::allocate(MINE, 100, at) {
                        pool::free(block.cast(), MINE, at);
                    }
                }
            }
            // 100 bytes end 4 before the guard.
            "pool_special_overrun" => block.add(112).write_volatile(0),
            "pool_special_small_overrun" => {
                block.add(100).write_volatile(0);
                pool::free(block, MINE, at);
            }
            "pool_special_use_after_free" => {
                pool::free(block, MINE, at);
                let _raised = at.raise::<Dispatch>();
                block.read_volatile();
            }
            "pool_special_double_free" => {
                pool::free(block, MINE, at);
                pool::free(block, MINE, at);
            }
            "pool_above_dispatch" => {
                let _raised = at.raise::<Clock>();
                drop(alloc::vec::Vec::<u8>::new().try_reserve(100));
            }
            "pool_page_freed_twice" => {
                if let Ok(page) = physical::allocate(at) {
                    let number = page.number();
                    kernel::info!("page {:#x}", number.number());
                    physical::free(page, at);
                    physical::free(Page::from_number(number), at);
                }
            }
            _ => {}
        }
    }
}
