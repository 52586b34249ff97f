//! The user's memory: reached by probes and copies, refused to everything else, on pages made by hand.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::PAGE;
use arch::trap::TrapFrame;
use kernel::boot::facts;
use kernel::ke::{trap, vectors};
use kernel::mm::layout;
use kernel::mm::user::{
    END, compare_exchange_u32, compare_exchange_u64, copy_from_user, copy_to_user, fill_user, probe_for_read,
    probe_for_write,
};
use kernel::rtl::status::NtStatus;
use sync::irql::{Apc, High, Irql, Passive};

use crate::interrupts::test_vector;
use crate::probe::{self, Seen};
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::user_pages::{As, PAGES, START, UserPages};

pub(crate) const TESTS: &[Test] = &[
    ("memory_user::copies_reach_the_users_pages", copies),
    ("memory_user::what_is_not_there_is_an_access_violation", refused),
    ("memory_user::the_kernels_half_is_never_reached", kernels),
    ("memory_user::smap_smep_and_reserved_bits_are_told_apart", told_apart),
    ("memory_user::handlers_have_no_right_to_it", handlers),
];

fn with_pages(
    at: &mut Irql<Passive>,
    test: impl FnOnce(&mut UserPages, &mut Irql<Passive>) -> Result,
) -> Result {
    let mut pages = UserPages::map(at)?;
    let result = test(&mut pages, at);
    pages.end(at);
    result
}

fn pattern(number: usize) -> u8 {
    (number ^ number >> 8) as u8 | 1
}

fn copies(at: &mut Irql<Passive>) -> Result {
    with_pages(at, |pages, at| {
        // Short, unaligned, over one border and over two.
        for (offset, bytes) in [(0, 1), (3, 7), (8, 64), (4090, 13), (100, 4096), (1, 8191)] {
            let mut sent = [0; 8192];
            (0..bytes).for_each(|at| sent[at] = pattern(at + offset));
            let to = START + offset as u64;
            let mut back = [0; 8192];
            let result = copy_to_user(to, &sent[..bytes], at)
                .and_then(|()| copy_from_user(&mut back[..bytes], to, &at.raise::<Apc>()));
            check(result.is_ok(), "a copy failed", to, bytes as u64)?;
            let there = (0..bytes).all(|number| {
                let place = offset + number;
                pages.bytes(place / 4096)[place % 4096] == pattern(place)
            });
            check(there, "not in the user's pages", to, bytes as u64)?;
            check(sent == back, "not what was sent", to, bytes as u64)?;
            check(fill_user(to, 0, bytes as u64, at).is_ok(), "a fill failed", to, bytes as u64)?;
            let left = |page: &[u8]| page.iter().filter(|&&byte| byte != 0).count() as u64;
            let left = (0..PAGES).map(|number| left(pages.bytes(number))).sum();
            equal(left, 0, "bytes that the fill left, or the copy put elsewhere")?;
        }
        let word = START + PAGE - 8;
        let found = [
            compare_exchange_u64(word, 1, 2, at),
            compare_exchange_u64(word, 0, 0x1122_3344_5566_7788, at),
            compare_exchange_u64(word, 0x1122_3344_5566_7788, u64::MAX, at),
        ];
        check(found == [Ok(0), Ok(0), Ok(0x1122_3344_5566_7788)], "64-bit exchange", word, 0)?;
        let found = [compare_exchange_u32(word, u32::MAX, 5, at), compare_exchange_u32(word, 6, 7, at)];
        check(found == [Ok(u32::MAX), Ok(5)], "32-bit exchange", word, 0)?;
        check(pages.bytes(0)[4088..] == [5, 0, 0, 0, 255, 255, 255, 255], "the word afterwards", word, 0)?;
        check(probe_for_write(START, PAGES as u64 * PAGE, 1, at).is_ok(), "a probe failed", START, 0)
    })
}

/// Each way to touch `bytes` bytes from `address` on that writes, and each that reads, must be refused, or not.
fn touch(address: u64, bytes: usize, reads: bool, writes: bool, at: &mut Irql<Passive>) -> Result {
    let mut buffer = [0x5A; 5000];
    let violation = |holds: bool| if holds { Ok(()) } else { Err(NtStatus::ACCESS_VIOLATION) };
    let read = copy_from_user(&mut buffer[..bytes], address, at);
    let written = [
        copy_to_user(address, &buffer[..bytes], at),
        fill_user(address, 1, bytes as u64, at),
        probe_for_write(address, bytes as u64, 1, at),
    ];
    check(read == violation(reads), "a read", address, bytes as u64)?;
    check(written == [violation(writes); 3], "a write", address, bytes as u64)
}

fn refused(at: &mut Irql<Passive>) -> Result {
    with_pages(at, |pages, at| {
        pages.remap(1, As::Nothing, at);
        pages.remap(3, As::ReadOnly, at);
        let page = |number: u64| START + number * PAGE;
        touch(page(0), 4096, true, true, at)?;
        touch(page(0) + 4095, 2, false, false, at)?;
        touch(page(0), 5000, false, false, at)?;
        touch(page(1), 1, false, false, at)?;
        touch(page(2) - 1, 2, false, false, at)?;
        touch(page(2), 4096, true, true, at)?;
        touch(page(3), 100, true, false, at)?;
        touch(page(3) - 1, 2, true, false, at)?;
        // What could be copied before the fault was.
        pages.bytes(0).fill(7);
        let mut buffer = [0; 20];
        check(copy_from_user(&mut buffer, page(1) - 8, at).is_err(), "copied from nowhere", page(1), 0)?;
        check(buffer[8..] == [0; 12], "more than there was", page(1), 0)?;
        let refused = [
            compare_exchange_u32(page(1), 0, 1, at).err(),
            compare_exchange_u32(page(3), 0, 1, at).err(),
            compare_exchange_u64(page(1) - 4, 0, 1, at).err().map(|_| NtStatus::ACCESS_VIOLATION),
        ];
        check(refused == [Some(NtStatus::ACCESS_VIOLATION); 3], "an exchange", page(1), 0)?;
        let misaligned = [probe_for_read(START + 1, 4, 4), probe_for_write(START + 2, 4, 4, at)];
        check(misaligned == [Err(NtStatus::DATATYPE_MISALIGNMENT); 2], "a misaligned probe", START, 0)?;
        // Nothing of that raised the level, or left interrupts off: the runner looks, and so does the next line.
        equal(arch::irql::current().into(), 0, "left at another level")
    })
}

fn kernels(at: &mut Irql<Passive>) -> Result {
    let own = 0x1234_5678_u32;
    let own = core::ptr::from_ref(&own).addr() as u64;
    for (address, bytes) in [
        (own, 4),
        (layout::IMAGE, 8),
        (layout::DIRECT, 1),
        (END, 1),
        (END - 1, 2),
        (END - 100, 4096),
        (0x0000_8000_0000_0000, 8),
        (0x7FFF_FFFF_FFFF, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (u64::MAX - 4095, 4096),
        (0, 1),
        (0xFFFF, 4096),
    ] {
        touch(address, bytes, false, false, at)?;
        // A probe looks at the range alone: what is in the user's half may be there.
        let probed = probe_for_read(address, bytes as u64, 1).is_ok();
        check(probed == (address < 0x1_0000), "a probe", address, bytes as u64)?;
    }
    touch(u64::MAX, 0, true, true, at)?;
    check(probe_for_read(END, 1, 1).is_err() && probe_for_read(END - 1, 1, 1).is_ok(), "the border", END, 0)
}

fn told_apart(at: &mut Irql<Passive>) -> Result {
    let features = facts().features;
    if !(features.smap && features.smep) {
        return Err(Verdict::Skip("needs SMAP and SMEP"));
    }
    with_pages(at, |pages, at| {
        pages.bytes(0)[0] = 0xC3;
        let error = |seen: Option<Seen>| seen.map_or(u64::MAX, |seen| seen.error);
        equal(error(probe::read(START)), 1, "SMAP, a read: there, and no more to say")?;
        equal(error(probe::store(START)), 1 | 2, "SMAP, a write")?;
        equal(error(probe::execute(START)), 1 | 16, "SMEP: there, a fetch")?;
        pages.remap(2, As::Broken, at);
        let broken = START + 2 * PAGE;
        // The manual wants the present bit as well; TCG leaves it out.
        equal(error(probe::read(broken)) & !1, 8, "a reserved bit, by a read")?;
        pages.remap(2, As::Nothing, at);
        equal(error(probe::read(broken)), 0, "nothing there")?;
        check(copy_to_user(START, &[1], at).is_ok(), "a copy has the right", START, 0)
    })
}

/// EFLAGS.AC of a handler, and of what it interrupted.
static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
const AC: u64 = 1 << 18;

fn flags() -> u64 {
    let flags: u64;
    // SAFETY: reads RFLAGS through this stack.
    unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

fn breakpoint(frame: &mut TrapFrame) -> bool {
    SEEN[0].store(flags() & AC, Ordering::Relaxed);
    SEEN[1].store(frame.rflags & AC, Ordering::Relaxed);
    frame.vector as u8 == 3
}

fn handlers(_: &mut Irql<Passive>) -> Result {
    if !facts().features.smap {
        return Err(Verdict::Skip("needs SMAP"));
    }
    let seen = || SEEN.each_ref().map(|word| word.load(Ordering::Relaxed));
    // SAFETY: SMAP is there; the hook goes on behind this INT3, the only exception until it is gone, and AC is cleared again.
    unsafe {
        trap::set_hook(Some(breakpoint));
        core::arch::asm!("stac", "int3", "clac");
        trap::set_hook(None);
    }
    check(seen() == [0, AC], "an exception's handler has AC", seen()[0], seen()[1])?;
    let vector = test_vector(15);
    // SAFETY: the vector is the tests' own; the handler runs on any stack.
    unsafe {
        vectors::install(vectors::Vector::<High>::new(vector), |_, service| {
            SEEN[0].store(flags() & AC, Ordering::Relaxed);
            service.end()
        });
    }
    SEEN[0].store(1, Ordering::Relaxed);
    let kept: u64;
    // SAFETY: as above; the interrupt comes right behind the WRMSR, or within the NOPs.
    unsafe {
        core::arch::asm!("stac");
        arch::apic::send_self(vector);
        core::arch::asm!("nop", "nop", "nop", "nop");
        kept = flags() & AC;
        core::arch::asm!("clac");
    }
    check(seen()[0] == 0 && kept == AC, "an interrupt's handler has AC, or took it away", seen()[0], kept)
}
