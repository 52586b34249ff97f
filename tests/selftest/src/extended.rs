//! Extended register state: initial, kept through nesting, waits, preemption and moves, given back, and nobody's otherwise.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::extended as registers;
use kernel::ke::thread::{self, Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ke::{extended, prcb, sched};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::runner::{Result, Test, check, equal};
use crate::threads::{here, join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("extended::begins_initial_and_is_nobodys_outside", begins),
    ("extended::nested_state_keeps_the_outer", nests),
    ("extended::threads_keep_theirs_wherever_they_run", moves),
    ("extended::threads_without_have_none_beside_those_with", shares),
    ("extended::a_thread_that_ends_within_leaves_nothing", ends),
];

const COUNT: usize = 16;
const DEFAULT_CONTROL: (u16, u32) = (0x037F, 0x1F80);

/// XMM0 to XMM15, or YMM0 to YMM15; the control words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
struct Registers {
    vectors: [[u64; 4]; COUNT],
    x87_control: u16,
    mxcsr: u32,
}

fn has_avx() -> bool {
    registers::layout().components & 1 << 2 != 0
}

/// An instruction for each of the sixteen, whose number stands between the three parts of its text.
macro_rules! sixteen {
    ($first:literal, $second:literal, $third:literal) => {
        sixteen!($first, $second, $third, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($first:literal, $second:literal, $third:literal, $($number:literal)*) => {
        concat!($($first, $number, $second, $number, $third, "\n"),*)
    };
}

impl Registers {
    const ZERO: Self = Self { vectors: [[0; 4]; COUNT], x87_control: 0, mxcsr: 0 };

    /// A pattern that no other `seed` has; upper halves only where there are any.
    fn of(seed: u64) -> Self {
        let mut it = Self::ZERO;
        let words = if has_avx() { 4 } else { 2 };
        for (number, vector) in (0..).zip(&mut it.vectors) {
            for (at, word) in (0..).zip(&mut vector[..words]) {
                *word = (seed << 16 | number << 8 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            }
        }
        // Rounding: four ways, in both control words.
        it.x87_control = DEFAULT_CONTROL.0 | (seed as u16 & 3) << 10;
        it.mxcsr = DEFAULT_CONTROL.1 | (seed as u32 & 3) << 13;
        it
    }

    /// Within `extended::with`.
    fn load(&self) {
        let from = self.vectors.as_ptr();
        // SAFETY: the thread has the registers; reads this struct.
        unsafe {
            if has_avx() {
                asm!(sixteen!("vmovdqu ymm", ", [rdi + 32 * ", "]"), in("rdi") from, options(nostack, readonly));
            } else {
                asm!(sixteen!("movdqu xmm", ", [rdi + 32 * ", "]"), in("rdi") from, options(nostack, readonly));
            }
            asm!("fldcw [{}]", "ldmxcsr [{}]", in(reg) &raw const self.x87_control, in(reg) &raw const self.mxcsr,
                 options(nostack, readonly));
        }
    }

    /// Within `extended::with`.
    fn stored() -> Self {
        let mut it = Self::ZERO;
        let to = it.vectors.as_mut_ptr();
        // SAFETY: the thread has the registers; writes this struct.
        unsafe {
            if has_avx() {
                asm!(sixteen!("vmovdqu [rdi + 32 * ", "], ymm", ""), in("rdi") to, options(nostack));
            } else {
                asm!(sixteen!("movdqu [rdi + 32 * ", "], xmm", ""), in("rdi") to, options(nostack));
            }
            asm!("fnstcw [{}]", "stmxcsr [{}]", in(reg) &raw mut it.x87_control, in(reg) &raw mut it.mxcsr,
                 options(nostack));
        }
        it
    }

    /// Are the registers these?
    fn check(&self) -> Result {
        let found = Self::stored();
        let wrong = found.vectors.iter().zip(&self.vectors).position(|(found, wanted)| found != wanted);
        check(wrong.is_none(), "a vector register is another", wrong.unwrap_or(0) as u64, 0)?;
        equal(found.x87_control.into(), self.x87_control.into(), "the x87 control word")?;
        equal(found.mxcsr.into(), self.mxcsr.into(), "MXCSR")
    }
}

const REFUSED: &str = "no memory for an area";

/// Runs `f` with extended state.
fn with(at: &mut Irql<Passive>, f: impl FnOnce(&mut Irql<Passive>) -> Result) -> Result {
    extended::with(at, f).unwrap_or(check(false, REFUSED, 0, 0))
}

fn begins(at: &mut Irql<Passive>) -> Result {
    check(!registers::is_allowed(), "allowed before", 0, 0)?;
    let initial = Registers { x87_control: DEFAULT_CONTROL.0, mxcsr: DEFAULT_CONTROL.1, ..Registers::ZERO };
    for round in 1..3 {
        with(at, |_| {
            check(registers::is_allowed(), "not allowed within", 0, 0)?;
            initial.check()?;
            Registers::of(round).load();
            Ok(())
        })?;
        check(!registers::is_allowed(), "allowed behind it", 0, 0)?;
    }
    Ok(())
}

fn nests(at: &mut Irql<Passive>) -> Result {
    let (outer, inner) = (Registers::of(1), Registers::of(2));
    with(at, |at| {
        outer.load();
        with(at, |at| {
            inner.load();
            sched::yield_now(at);
            inner.check()
        })?;
        outer.check()?;
        let _ = delay(Due::In(1_000), at);
        outer.check()
    })
}

/// Rounds of all threads that found their registers as they left them.
static KEPT: AtomicU64 = AtomicU64::new(0);
/// Rounds that did not.
static LOST: AtomicU64 = AtomicU64::new(0);
const ROUNDS: u64 = 60;

/// Its registers, through waits and yields, on one processor after the other.
fn keeps(at: &mut Irql<Passive>, seed: usize) {
    let kept = with(at, |at| {
        for round in 0..ROUNDS {
            let mine = Registers::of(seed as u64 * ROUNDS + round + 1);
            mine.load();
            match round % 3 {
                0 => _ = sched::yield_now(at),
                1 => _ = delay(Due::In(500), at),
                _ => {
                    let next = (seed as u64 + round) % u64::from(prcb::count());
                    let _ = sched::set_affinity(&thread::current(at).reference(), 1 << next, at);
                }
            }
            mine.check()?;
            KEPT.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    LOST.fetch_add(u64::from(kept.is_err()), Ordering::Relaxed);
}

/// Nobody's registers, whoever ran before on its processor.
fn has_none(at: &mut Irql<Passive>, _: usize) {
    for round in 0..ROUNDS {
        LOST.fetch_add(u64::from(registers::is_allowed()), Ordering::Relaxed);
        if round % 2 == 0 {
            sched::yield_now(at);
        } else {
            let _ = delay(Due::In(300), at);
        }
    }
}

/// Runs `count` threads of each of `routines` and joins them.
fn run_all(options: &Options, count: usize, routines: &[thread::Routine], at: &mut Irql<Passive>) -> Result {
    KEPT.store(0, Ordering::Relaxed);
    LOST.store(0, Ordering::Relaxed);
    let mut threads: [Option<ThreadRef>; 64] = [const { None }; 64];
    let mut made = Ok(());
    for (seed, slot) in threads[..count * routines.len()].iter_mut().enumerate() {
        match spawn(options, routines[seed % routines.len()], seed, at) {
            Ok(it) => *slot = Some(it),
            Err(verdict) => made = Err(verdict),
        }
    }
    // They end by themselves.
    for thread in threads.iter().flatten() {
        join(thread, at)?;
    }
    made?;
    equal(LOST.load(Ordering::Relaxed), 0, "threads that lost their registers, or had another's")
}

fn moves(at: &mut Irql<Passive>) -> Result {
    let count = 2 * prcb::count().min(32) as usize;
    run_all(&Options::default(), count, &[keeps], at)?;
    equal(KEPT.load(Ordering::Relaxed), count as u64 * ROUNDS, "rounds")
}

/// On one processor, so that they follow one another.
fn shares(at: &mut Irql<Passive>) -> Result {
    fn stays(at: &mut Irql<Passive>, seed: usize) {
        let mine = Registers::of(seed as u64 + 1);
        let kept = with(at, |at| {
            mine.load();
            for _ in 0..ROUNDS {
                sched::yield_now(at);
                mine.check()?;
                let _ = delay(Due::In(300), at);
                mine.check()?;
            }
            Ok(())
        });
        LOST.fetch_add(u64::from(kept.is_err()), Ordering::Relaxed);
    }
    run_all(&here("shares", 9), 3, &[stays, has_none], at)
}

/// The runner finds what is kept.
fn ends(at: &mut Irql<Passive>) -> Result {
    fn ends_within(at: &mut Irql<Passive>, _: usize) {
        let _ = extended::with(at, |at| {
            Registers::of(3).load();
            extended::with(at, |at| thread::exit(NtStatus::SUCCESS, at))
        });
    }
    for _ in 0..3 {
        let it = spawn(&here("ends", 9), ends_within, 0, at)?;
        join(&it, at)?;
        check(!registers::is_allowed(), "allowed behind its end", 0, 0)?;
    }
    Ok(())
}
