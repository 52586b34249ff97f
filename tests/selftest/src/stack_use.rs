//! How much of their stacks the processors use: nested handlers at their worst, and everything that this image does.
//!
//! A stack is painted, something is run, and the lowest word that lost its paint tells how deep it went. What isn't written isn't
//! seen: a frame's holes may make it look a few words shorter.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::{apic, vector};
use kernel::ke::interrupt::{Claim, Interrupt, Request, Share, Source};
use kernel::ke::{prcb, thread};
use kernel::mm::stacks::{self, Kind};
use sync::InterruptLock;
use sync::irql::{Device, DeviceLevel, High, Irql, Level, Passive};

use crate::everywhere;
use crate::interrupts::test_vector;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const NESTED: &[Test] = &[("stack_use::nested_handlers_take_less_than_a_quarter", nested)];
/// After all others.
pub(crate) const LAST: &[Test] = &[("stack_use::no_stack_was_used_up_to_a_quarter_of_its_end", whole_run)];

const PAINT: u64 = 0x5AC5_5AC5_5AC5_5AC5;
/// Below a stack pointer: nothing is in use, but the painting may be compiled to push something.
const BELOW: u64 = 64;
/// How deep the test thread's stack was used before it was painted anew.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// What the end of a stack holds from the start: the PCR's address on an IST stack.
const AT_THE_END: u64 = 16;
/// An idle thread that was switched away from has less than this on its stack.
const IDLE: u64 = 8 * 1024;

/// From the lowest mapped address of a stack to its end.
#[derive(Clone, Copy)]
struct Bounds {
    bottom: u64,
    top: u64,
}

impl Bounds {
    fn of(number: u32, kind: Kind) -> Self {
        Self { bottom: stacks::bottom(number, kind), top: stacks::top(number, kind) }
    }

    /// The stack that this runs on: the running thread's.
    fn here<L: Level>(at: &Irql<L>) -> Self {
        thread::current(at)
            .stack()
            .map_or_else(|| Self::of(arch::cpu::number(), Kind::Kernel), |(bottom, top)| Self { bottom, top })
    }
}

fn stack_pointer() -> u64 {
    let rsp: u64;
    // SAFETY: reads RSP.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    rsp
}

/// Paints from the bottom of a stack up to `end`.
///
/// # Safety
/// Nothing between the two is in use, but by what comes and goes meanwhile.
#[inline(always)]
unsafe fn paint(stack: Bounds, end: u64) {
    for address in (stack.bottom..end).step_by(8) {
        // SAFETY: mapped, and the caller's.
        unsafe { (address as *mut u64).write_volatile(PAINT) };
    }
}

/// How far down a painted stack was written.
fn lowest(Bounds { bottom, top }: Bounds) -> u64 {
    // SAFETY: mapped memory; somebody else's words may change under the reading.
    let is_painted = |address: &u64| unsafe { (*address as *const u64).read_volatile() } == PAINT;
    (bottom..top).step_by(8).find(|address| !is_painted(address)).unwrap_or(top)
}

/// Paints this processor's stacks and that of the thread that it runs.
fn paint_own(at: &mut Irql<Passive>, number: u32) {
    let at = at.raise::<High>();
    let here = Bounds::here(&*at);
    // SAFETY: 1. This stack below its pointer. 2. Of the others nothing is in use: a thread runs here that was at PASSIVE, so neither
    //         a DPC nor an exception is under way, and nothing comes before this ends; the words at their ends are spared, and
    //         what an idle thread that waits has. An NMI, which may come, is none of this processor's doing.
    unsafe {
        paint(here, stack_pointer() - BELOW);
        for kind in Kind::ALL {
            let stack = Bounds::of(number, kind);
            if stack.top != here.top {
                paint(stack, stack.top - if kind == Kind::Kernel { IDLE } else { AT_THE_END });
            }
        }
    }
}

/// Before the first test. By threads, since an interrupt may find its processor on any of its stacks.
pub(crate) fn paint_all(at: &mut Irql<Passive>) {
    everywhere::run(at, paint_own);
}

/// Bytes of this stack that `work` uses.
#[inline(never)]
fn used(at: &mut Irql<Passive>, work: impl FnOnce()) -> u64 {
    let (stack, from) = (Bounds::here(at), stack_pointer());
    BEFORE.fetch_max(stack.top - lowest(stack), Ordering::Relaxed);
    // SAFETY: this stack, below its pointer.
    unsafe { paint(stack, from - BELOW) };
    work();
    from - lowest(stack)
}

const LEVELS: usize = 9;
static ROUTE: [AtomicU32; LEVELS] = [const { AtomicU32::new(0) }; LEVELS];
static REACHED: AtomicU32 = AtomicU32::new(0);

fn send(vector: u8) {
    // SAFETY: each has its handler.
    unsafe { apic::send_self(vector) };
}

/// The ISR of a level's object: a higher one interrupts it.
fn isr(_: &mut (), at: &mut Irql<Device>) -> Claim {
    let index = usize::from(at.level() - 3);
    REACHED.fetch_add(1, Ordering::Relaxed);
    match ROUTE.get(index + 1) {
        Some(next) => send(next.load(Ordering::Relaxed) as u8),
        None => send(test_vector(12)),
    }
    Claim::Claimed
}

/// One handler for each level from 3 to 15 at once, objects with their chains and locks at the devices' levels. Above them the
/// kernel's own handlers, which nothing can be made to interrupt at their deepest: each alone, and the sum of all is the worst case.
fn nested(at: &mut Irql<Passive>) -> Result {
    const fn level(index: usize) -> DeviceLevel {
        DeviceLevel::new(3 + index as u8).unwrap()
    }
    const fn lock(index: usize) -> InterruptLock<()> {
        InterruptLock::new(level(index), ())
    }
    static LOCKS: [InterruptLock<()>; LEVELS] =
        [lock(0), lock(1), lock(2), lock(3), lock(4), lock(5), lock(6), lock(7), lock(8)];
    const fn object(index: usize) -> Interrupt<()> {
        Interrupt::new(&LOCKS[index], isr)
    }
    static OBJECTS: [Interrupt<()>; LEVELS] =
        [object(0), object(1), object(2), object(3), object(4), object(5), object(6), object(7), object(8)];
    REACHED.store(0, Ordering::Relaxed);
    for (index, object) in OBJECTS.iter().enumerate() {
        let request = Request {
            source: Source::Message,
            level: level(index),
            share: Share::Exclusive,
            affinity: 1 << arch::cpu::number(),
        };
        let route =
            object.connect(&request, at).map_err(|_| Verdict::Fail("not connected", index as u64, 0))?;
        ROUTE[index].store(route.vector.into(), Ordering::Relaxed);
    }
    // SAFETY: correct at any level, for a vector of the self-test's own.
    unsafe {
        arch::trap::set_handler(test_vector(12), |_, service| {
            REACHED.fetch_add(1, Ordering::Relaxed);
            service.end()
        });
    }
    let devices = used(at, || send(ROUTE[0].load(Ordering::Relaxed) as u8));
    let [clock, ipi, error] =
        [vector::CLOCK, vector::IPI, vector::APIC_ERROR].map(|vector| used(at, || send(vector)));
    for object in &OBJECTS {
        check(object.disconnect(at), "not disconnected", 0, 0)?;
    }
    equal(REACHED.load(Ordering::Relaxed).into(), 10, "levels that were under way at once")?;
    let worst = devices + clock + ipi + error;
    kernel::info!(
        "nested handlers: levels 3 to 12 use {devices} bytes, clock {clock}, IPI {ipi}, APIC error {error}: {worst} in all"
    );
    check(worst <= Kind::Kernel.bytes() / 4, "bytes of a stack", worst, Kind::Kernel.bytes())
}

fn whole_run(at: &mut Irql<Passive>) -> Result {
    for kind in Kind::ALL {
        let use_of = |number| {
            let stack = Bounds::of(number, kind);
            stack.top - lowest(stack)
        };
        let most = (0..prcb::count()).map(use_of).fold(0, u64::max);
        judge(kind as u64, most, kind.bytes(), format_args!("{kind:?}"))?;
    }
    let stack = Bounds::here(at);
    let most = (stack.top - lowest(stack)).max(BEFORE.load(Ordering::Relaxed));
    judge(u64::MAX, most, stack.top - stack.bottom, format_args!("test thread's"))
}

fn judge(number: u64, most: u64, bytes: u64, name: core::fmt::Arguments<'_>) -> Result {
    kernel::info!("the {name} stacks: {most} of {bytes} bytes at most");
    check(most <= bytes / 4 * 3, "bytes of a stack", most, number)
}
