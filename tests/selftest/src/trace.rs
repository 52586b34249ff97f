//! The trace: what an event costs, and that events are recorded where and when they happen.

use arch::trace::{Kind, Ring, event};
use sync::irql::{Dispatch, Irql, Passive};

use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("trace::an_event_takes_at_most_25_instructions", cost),
    ("trace::events_are_recorded_in_order", order),
];

/// Instructions of `work`, if the time stamp counter counts instructions.
fn counted(work: impl Fn()) -> u64 {
    let start = arch::cpu::timestamp();
    work();
    arch::cpu::timestamp() - start
}

/// Is time counted in instructions, as it is under QEMU's counter? A loop of a known length tells.
pub(crate) fn counts_instructions(at: &mut Irql<Passive>) -> bool {
    const ROUNDS: u64 = 1000;
    let raised = at.raise::<Dispatch>();
    let nothing = counted(|| {});
    let known = counted(|| {
        // SAFETY: counts a register down.
        unsafe {
            core::arch::asm!("mov {0:e}, {rounds}", "2:", "dec {0:e}", "jnz 2b", out(reg) _, rounds = const ROUNDS)
        }
    });
    drop(raised);
    known.wrapping_sub(nothing) == 2 * ROUNDS + 1
}

fn cost(at: &mut Irql<Passive>) -> Result {
    if !counts_instructions(at) {
        return Err(Verdict::Skip("needs the instruction counter"));
    }
    let raised = at.raise::<Dispatch>();
    let nothing = counted(|| {});
    let one = counted(|| event(Kind::Mark, 0, 0, 0));
    drop(raised);
    let found = one.saturating_sub(nothing);
    check((10..=25).contains(&found), "instructions an event", found, 25)
}

fn order(at: &mut Irql<Passive>) -> Result {
    let mut raised = at.raise::<Dispatch>();
    let ring: &Ring = arch::trace::here(&mut raised);
    // Somewhere in the ring, among what interrupts record: all three, in order, with what they were given.
    let before = ring.events();
    for value in 1..=3 {
        event(Kind::Mark, value, 0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
    }
    let mut found = 0;
    let mut last = 0;
    for index in before..ring.events() {
        let Some([stamp, head, second, third]) = ring.record(index) else {
            return Err(Verdict::Fail("an event is not there", index, ring.events()));
        };
        check(stamp >= last, "time runs backwards", stamp, last)?;
        last = stamp;
        equal(head & 0xFFFF_FFFF, index & 0xFFFF_FFFF, "its index")?;
        let (kind, level, first) = (head >> 32 & 0xFF, head >> 40 & 0xFF, head >> 48);
        if kind == Kind::Mark as u64 && second == 0x1111_2222_3333_4444 {
            equal(level, 2, "its level")?;
            equal(third, 0x5555_6666_7777_8888, "its third argument")?;
            found += 1;
            equal(first, found, "the order")?;
        }
    }
    equal(found, 3, "events found")
}
