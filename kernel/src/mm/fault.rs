//! Page faults: what one means, by address, level, mode and what was tried. Pure: who acts is `resolve`, who reports ke/trap.rs.
//!
//! ```text
//!                         level below DISPATCH, interrupts on       else
//!  a reserved bit         bugcheck 0x1A                             0x1A
//!  user half   user mode  the address space decides                 -
//!              copy       the same; if it can't: STATUS_ACCESS_…    0x0A
//!              kernel     0x50, SMAP; 0xFC, SMEP                    0x0A, 0xD1
//!  kernel half user mode  STATUS_ACCESS_VIOLATION                   -
//!              no right   0xBE, 0xFC                                the same
//!              paged pool its page is made                          0x0A, 0xD1
//!              executable the other right (also at DISPATCH to 13)  0xBE, 0xFC
//!              else       0x50                                      0x0A, 0xD1
//! ```
//!
//! "copy" is an instruction of `arch::user`, which are alone in touching the user's memory. 0xD1 in place of 0x0A says that the
//! instruction is a driver's: not the image's text.
//!
//! Not as NT: with interrupts off, nothing is resolved at any level, as there; the level is told as 0xFF then, as there.
//! Tests:   the unit tests below; selftest `memory::*`, `memory_fault::*`; crash `write_text`, `fault_*`, `pool_special_*`, `paged_*`.
//! Sources: SDM vol. 3, "Page-Fault Exceptions"; WDK, bug checks 0x0A, 0x1A, 0x50, 0xBE, 0xD1, 0xFC.

use super::layout;
use crate::ke::bugcheck::StopCode;

/// Bits of the error code.
mod error {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const RESERVED: u64 = 1 << 3;
    pub(super) const EXECUTE: u64 = 1 << 4;
}

/// Whose the instruction is, in kernel mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The kernel's.
    Kernel,
    /// One of those that may touch the user's memory, and have a landing where it can't be reached.
    UserCopy,
    /// A driver's: any other.
    Driver,
}

/// A page fault, as the processor reports it.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What was to be reached.
    pub address: u64,
    /// The error code.
    pub error: u64,
    /// The interrupted level.
    pub irql: u8,
    /// Whether interrupts were on.
    pub interruptible: bool,
    /// The instruction.
    pub rip: u64,
    /// Whose it is.
    pub code: Code,
}

/// What was to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch.
    Execute,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Paged pool: its page is made, or brought back.
    PagedPool,
    /// There, but not for this; perhaps the page goes between being written and being run: `executable` knows. If not, fatal.
    Toggle,
    /// A user address: the address space knows. If it doesn't, as `AccessViolation`.
    User,
    /// The code that did it is told, and goes on: user mode by an exception, a copy by its result.
    AccessViolation,
    /// The kernel is broken.
    Fatal(Meaning),
}

/// What it means: the bugcheck, and a sentence for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The stop code.
    pub code: StopCode,
    /// Its parameters.
    pub parameters: [u64; 4],
    /// In words.
    pub why: &'static str,
}

/// The level that is reported where interrupts are off.
const UNINTERRUPTIBLE: u64 = 0xFF;

impl Fault {
    /// What was to be done.
    pub fn kind(&self) -> Kind {
        if self.error & error::EXECUTE != 0 {
            Kind::Execute
        } else if self.error & error::WRITE != 0 {
            Kind::Write
        } else {
            Kind::Read
        }
    }

    /// As NT reports it.
    fn kind_number(&self) -> u64 {
        match self.kind() {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Execute => 8,
        }
    }

    /// The page is there, but not for this.
    pub fn is_present(&self) -> bool {
        self.error & error::PRESENT != 0
    }

    /// By code in user mode.
    pub fn is_user_mode(&self) -> bool {
        self.error & error::USER != 0
    }

    fn is_user_half(&self) -> bool {
        self.address >> 47 == 0
    }

    /// No page can be waited for.
    fn is_too_high(&self) -> bool {
        self.irql >= arch::level::DISPATCH || !self.interruptible
    }

    /// Decides.
    pub fn decide(&self) -> Decision {
        if self.error & error::RESERVED != 0 {
            return Decision::Fatal(self.meaning());
        }
        let copies = self.code == Code::UserCopy && self.kind() != Kind::Execute;
        match (self.is_user_mode(), self.is_user_half()) {
            (true, true) => Decision::User,
            (true, false) => Decision::AccessViolation,
            (false, true) if copies && !self.is_too_high() => Decision::User,
            (false, false) if self.is_paged() && !self.is_too_high() => Decision::PagedPool,
            (false, false) if self.may_toggle() => Decision::Toggle,
            (false, _) => Decision::Fatal(self.meaning()),
        }
    }

    /// Among the system PTEs, where executable pool is, below IPI. Code that writes into a page that it lies in would go on faulting: that
    /// of its first byte, or of the last that it may have. What the instruction really is, nobody looks at.
    fn may_toggle(&self) -> bool {
        const PAGE: u64 = 4096;
        /// The most bytes of an instruction.
        const LONGEST: u64 = 15;
        let ends = [self.rip, self.rip.wrapping_add(LONGEST - 1)];
        let is_own = ends.into_iter().any(|byte| byte / PAGE == self.address / PAGE);
        self.is_present()
            && self.kind() != Kind::Read
            && layout::part(self.address) == Some(layout::SYSTEM_PTES)
            && self.irql < arch::level::IPI
            && self.interruptible
            && !(self.kind() == Kind::Write && is_own)
    }

    /// In paged pool, which is never executed.
    fn is_paged(&self) -> bool {
        !self.is_present()
            && self.kind() != Kind::Execute
            && layout::part(self.address) == Some(layout::PAGED_POOL)
    }

    /// The bugcheck, if nothing else is to be done. What a page that is there does not allow comes first: there, the level
    /// changes nothing.
    pub fn meaning(&self) -> Meaning {
        let Self { address, error: bits, irql, rip, .. } = *self;
        let is = |wanted| bits & wanted != 0;
        let user_half = self.is_user_half();
        let rights = [address, bits, rip, 0];
        let (code, parameters, why) = if is(error::RESERVED) {
            (
                StopCode::MemoryManagement,
                [0x411, address, bits, rip],
                "a reserved bit is set in a page-table entry",
            )
        } else if is(error::PRESENT) && is(error::EXECUTE) {
            let why =
                if user_half { "the user's code run by the kernel (SMEP)" } else { "no code: no-execute" };
            (StopCode::AttemptedExecuteOfNoexecuteMemory, rights, why)
        } else if is(error::PRESENT) && is(error::WRITE) && !user_half {
            (StopCode::AttemptedWriteToReadonlyMemory, rights, "read-only memory")
        } else {
            let why = if is(error::PRESENT) {
                "the user's memory reached by the kernel (SMAP)"
            } else {
                area(address)
            };
            if self.is_too_high() {
                let code = match self.code {
                    Code::Driver => StopCode::DriverIrqlNotLessOrEqual,
                    Code::Kernel | Code::UserCopy => StopCode::IrqlNotLessOrEqual,
                };
                let level = if self.interruptible { irql.into() } else { UNINTERRUPTIBLE };
                (code, [address, level, self.kind_number(), rip], why)
            } else {
                (StopCode::PageFaultInNonpagedArea, [address, self.kind_number(), rip, 0], why)
            }
        };
        Meaning { code, parameters, why }
    }
}

/// What is not mapped at `address`.
fn area(address: u64) -> &'static str {
    /// NT never maps the first 64 KiB: what is reached there is nearly always a field behind a null pointer.
    const NULL: u64 = 0x1_0000;
    if address < NULL {
        return "a null pointer, or a field behind one";
    }
    if address >> 47 == 0 {
        return "a user address, reached otherwise than by a copy";
    }
    match layout::part(address) {
        Some(layout::DIRECT) => "no memory at that physical address, or the image's",
        Some(layout::PFN_DATABASE) => "an entry for a page that is no memory",
        Some(layout::DEVICES) => "no device mapped there",
        Some(layout::SYSTEM_PTES) => "a mapping that ended, or the guard page of one",
        Some(layout::STACKS) => "the guard pages below a stack",
        Some(layout::PAGED_POOL) => "paged pool: above APC, or a block that nobody has",
        Some(layout::PAGED_POOL_ENTRIES) => "an entry of paged pool that isn't made yet",
        Some(layout::SESSION) => "session space, which nobody has yet",
        Some(layout::KUSER_SHARED_DATA) => "the page shared with users",
        Some(_) => "behind the image",
        None => "no part of the address space",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(address: u64, error: u64, irql: u8) -> (u32, [u64; 4], &'static str) {
        let meaning = fault(address, error, irql, Code::Kernel).meaning();
        (meaning.code as u32, meaning.parameters, meaning.why)
    }

    fn fault(address: u64, error: u64, irql: u8, code: Code) -> Fault {
        Fault { address, error, irql, interruptible: true, rip: 0x77, code }
    }

    fn fatal(fault: Fault) -> (u32, [u64; 4]) {
        match fault.decide() {
            Decision::Fatal(meaning) => (meaning.code as u32, meaning.parameters),
            other => panic!("{fault:?} is {other:?}"),
        }
    }

    const TEXT: u64 = layout::IMAGE;

    #[test]
    fn a_page_that_is_not_there_is_judged_by_level() {
        let (code, parameters, why) = meaning(8, 0, 0);
        assert_eq!((code, parameters), (0x50, [8, 0, 0x77, 0]));
        assert!(why.contains("null"));
        assert_eq!(meaning(8, 2, 0).1[1], 1);
        assert_eq!(meaning(8, 16, 1).1[1], 8);
        for irql in 2..=15 {
            let (code, parameters, _) = meaning(layout::STACKS, 2, irql);
            assert_eq!((code, parameters), (0x0A, [layout::STACKS, irql.into(), 1, 0x77]));
        }
    }

    #[test]
    fn rights_are_told_apart_at_any_level() {
        for irql in [0, 1, 2, 13, 15] {
            assert_eq!(meaning(TEXT, 1 | 2, irql).0, 0xBE);
            let (code, parameters, why) = meaning(layout::DIRECT, 1 | 16, irql);
            assert_eq!((code, parameters), (0xFC, [layout::DIRECT, 17, 0x77, 0]));
            assert!(why.contains("no-execute"));
            assert!(meaning(0x40_0000, 1 | 16, irql).2.contains("SMEP"));
            assert!(meaning(0x40_0000, 1, irql).2.contains("SMAP"));
            assert!(meaning(0x40_0000, 1 | 2, irql).2.contains("SMAP"));
            let (code, parameters, why) = meaning(TEXT, 1 | 2 | 8, irql);
            assert_eq!((code, parameters), (0x1A, [0x411, TEXT, 11, 0x77]));
            assert!(why.contains("reserved"));
        }
    }

    const USER: u64 = 0x40_0000;
    const POOL: u64 = layout::PAGED_POOL + 0x5008;

    #[test]
    fn paged_pool_is_made_below_dispatch_with_interrupts_on() {
        for code in [Code::Kernel, Code::UserCopy, Code::Driver] {
            for (irql, error) in [(0, 0), (1, 0), (0, 2), (1, 2)] {
                assert_eq!(fault(POOL, error, irql, code).decide(), Decision::PagedPool);
            }
        }
        for irql in 2..=15 {
            let (code, parameters) = fatal(fault(POOL, 2, irql, Code::Kernel));
            assert_eq!((code, parameters), (0x0A, [POOL, irql.into(), 1, 0x77]));
            assert_eq!(fatal(fault(POOL, 0, irql, Code::Driver)).0, 0xD1);
        }
        let closed = Fault { interruptible: false, ..fault(POOL, 0, 1, Code::Kernel) };
        assert_eq!(fatal(closed), (0x0A, [POOL, 0xFF, 0, 0x77]));
        // What isn't missing but forbidden is never made, and nothing is made to be executed.
        assert_eq!(fatal(fault(POOL, 3, 0, Code::Kernel)).0, 0xBE);
        assert_eq!(fatal(fault(POOL, 16, 0, Code::Kernel)).0, 0x50);
        assert_eq!(fatal(fault(POOL, 8, 0, Code::Kernel)).0, 0x1A);
    }

    #[test]
    fn executable_pool_changes_hands_below_ipi() {
        let place = layout::SYSTEM_PTES + 0x5008;
        for irql in 0..14 {
            for error in [1 | 2, 1 | 16] {
                assert_eq!(fault(place, error, irql, Code::Driver).decide(), Decision::Toggle);
            }
        }
        assert_eq!(fatal(fault(place, 1 | 2, 14, Code::Kernel)).0, 0xBE);
        assert_eq!(fatal(fault(place, 1 | 16, 15, Code::Kernel)).0, 0xFC);
        assert_eq!(fatal(Fault { interruptible: false, ..fault(place, 3, 0, Code::Kernel) }).0, 0xBE);
        // A store by code of the same page; one of another goes on.
        assert_eq!(fatal(Fault { rip: place - 8, ..fault(place, 3, 0, Code::Driver) }).0, 0xBE);
        let near = Fault { rip: place + 4096, ..fault(place, 3, 0, Code::Driver) };
        assert_eq!(near.decide(), Decision::Toggle);
        // One that may go on in the page that it stores to: 15 bytes from the last place of the page before.
        let before = layout::SYSTEM_PTES + 0x5000;
        for distance in 1..15 {
            assert_eq!(fatal(Fault { rip: before - distance, ..fault(place, 3, 0, Code::Driver) }).0, 0xBE);
        }
        let ends_before = Fault { rip: before - 15, ..fault(place, 3, 0, Code::Driver) };
        assert_eq!(ends_before.decide(), Decision::Toggle);
        // It may fetch its second half, of course.
        let fetch = Fault { rip: before - 1, address: before, ..fault(place, 1 | 16, 0, Code::Driver) };
        assert_eq!(fetch.decide(), Decision::Toggle);
        // Not there, or elsewhere.
        assert_eq!(fatal(fault(place, 2, 0, Code::Kernel)).0, 0x50);
        assert_eq!(fatal(fault(layout::DIRECT, 1 | 16, 0, Code::Kernel)).0, 0xFC);
    }

    #[test]
    fn the_address_space_is_asked_for_users_and_copies_alone() {
        for error in [0, 1, 2, 3] {
            assert_eq!(fault(USER, error, 0, Code::UserCopy).decide(), Decision::User);
            assert_eq!(fault(USER, error, 1, Code::UserCopy).decide(), Decision::User);
            assert_eq!(fault(USER, error | 4, 0, Code::Driver).decide(), Decision::User);
            assert_eq!(fault(POOL, error | 4, 0, Code::Driver).decide(), Decision::AccessViolation);
            assert_eq!(fault(TEXT, error | 4, 0, Code::Driver).decide(), Decision::AccessViolation);
            assert_eq!(fatal(fault(USER, error, 0, Code::Kernel)).0, 0x50);
            assert_eq!(fatal(fault(USER, error, 2, Code::UserCopy)).0, 0x0A);
            assert_eq!(fatal(fault(USER, error, 2, Code::Driver)).0, 0xD1);
        }
        assert_eq!(fault(USER, 4 | 16, 0, Code::Driver).decide(), Decision::User);
        assert_eq!(fatal(fault(USER, 1 | 16, 0, Code::UserCopy)).0, 0xFC);
        // A copy's kernel side is held to the kernel's rules.
        assert_eq!(fatal(fault(layout::STACKS, 2, 0, Code::UserCopy)).0, 0x50);
        assert_eq!(fatal(fault(USER, 4 | 8, 0, Code::Driver)).0, 0x1A);
    }

    #[test]
    fn every_part_has_its_words() {
        let mut seen = std::collections::HashSet::new();
        for (name, start, bytes) in layout::MAP {
            assert!(seen.insert(area(start)), "{name} reads like another");
            assert_eq!(area(start), area(start + bytes - 1));
        }
        assert!(seen.insert(area(0xFFFF_F000_0000_0000)));
    }
}
