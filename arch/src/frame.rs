//! What the entries of `trap` leave on the stack, and how a backtrace reads it.
//!
//! RBP chains through every frame. Where a return address would be stands the vector, a byte that is sign-extended, by which a
//! backtrace knows which layout follows: no return address is so near to zero or to the end of the address space.
//!
//! Called by: the entries (x86_64/trap.rs), whose pushes make these structures; the kernel's handlers and backtraces.
//! Tests:     the unit tests below; the crash reports (ci/src/crash.rs wants addresses of the image's code in each).

use core::mem::{offset_of, size_of};

/// What a maskable interrupt saves: the volatile registers, lowest address first.
#[derive(Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct InterruptFrame {
    /// CR8 of the interrupted code.
    pub irql: u64,
    _align: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub rbp: u64,
    /// Low byte: the vector.
    pub vector: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What an exception or NMI saves: every general register.
#[derive(Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct TrapFrame {
    /// CR8 of the code that raised it.
    pub irql: u64,
    /// CR2 at entry; means something for #PF.
    pub cr2: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub rbp: u64,
    /// Low byte: the vector.
    pub vector: u64,
    /// The processor's error code, or zero.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// The stack is aligned to 16 by the processor before it pushes; both frames must keep that for the call that follows.
const _: () = assert!(size_of::<InterruptFrame>().is_multiple_of(16));
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16));

/// Where the entries find a field of their frame from RBP, which points at the saved RBP.
#[cfg(target_os = "none")]
pub(crate) mod from_rbp {
    use super::*;

    /// Bytes of an interrupt's frame below RBP.
    pub(crate) const INTERRUPT: usize = offset_of!(InterruptFrame, rbp);
    pub(crate) const VECTOR: usize = offset_of!(InterruptFrame, vector) - INTERRUPT;
    /// Bytes of an exception's frame below RBP.
    pub(crate) const TRAP: usize = offset_of!(TrapFrame, rbp);
    pub(crate) const TRAP_RIP: usize = offset_of!(TrapFrame, rip) - TRAP;
    pub(crate) const TRAP_CS: usize = offset_of!(TrapFrame, cs) - TRAP;
    /// The word at the initial RSP of an IST stack: the PCR's address.
    pub(crate) const IST_PCR: usize = size_of::<TrapFrame>() - TRAP;
}

/// The same from RSP where that points at the vector: before the registers are saved, and after they are restored.
#[cfg(target_os = "none")]
pub(crate) mod from_vector {
    use super::*;

    pub(crate) const CS: usize = offset_of!(InterruptFrame, cs) - offset_of!(InterruptFrame, vector);
    /// To what `iretq` takes.
    pub(crate) const RIP: usize = offset_of!(InterruptFrame, rip) - offset_of!(InterruptFrame, vector);
    pub(crate) const TRAP_CS: usize = offset_of!(TrapFrame, cs) - offset_of!(TrapFrame, vector);
    pub(crate) const TRAP_RIP: usize = offset_of!(TrapFrame, rip) - offset_of!(TrapFrame, vector);
}

/// One step of a backtrace: what stands behind a frame's saved RBP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A call: the return address, and the caller's RBP.
    Call(u64, u64),
    /// An interrupt or exception: the interrupted RIP, RSP and RBP.
    Trap(u64, u64, u64),
}

/// Decodes the frame at `rbp`, reading words through `read`, which refuses addresses that aren't mapped.
pub fn unwind(rbp: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Link> {
    if rbp == 0 || !rbp.is_multiple_of(8) {
        return None;
    }
    let word = |offset: usize| read(rbp.checked_add(offset as u64)?);
    let saved = word(0)?;
    let behind = word(8)?;
    let marker = behind as i64;
    if (0..31).contains(&marker) {
        let at = |offset: usize| word(offset - offset_of!(TrapFrame, rbp));
        Some(Link::Trap(at(offset_of!(TrapFrame, rip))?, at(offset_of!(TrapFrame, rsp))?, saved))
    } else if (-128..128).contains(&marker) {
        let at = |offset: usize| word(offset - offset_of!(InterruptFrame, rbp));
        Some(Link::Trap(at(offset_of!(InterruptFrame, rip))?, at(offset_of!(InterruptFrame, rsp))?, saved))
    } else {
        Some(Link::Call(behind, saved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack at address 0x1000.
    const BASE: u64 = 0x1000;

    fn step(stack: &[u64], rbp: u64) -> Option<Link> {
        unwind(rbp, |address| stack.get((address.checked_sub(BASE)? / 8) as usize).copied())
    }

    #[test]
    fn a_call_gives_return_address_and_caller() {
        let stack = [BASE + 64, 0xFFFF_FFFF_8000_1234];
        assert_eq!(step(&stack, BASE), Some(Link::Call(0xFFFF_FFFF_8000_1234, BASE + 64)));
    }

    #[test]
    fn an_interrupt_is_told_by_its_vector_from_31_up() {
        // RBP, vector, RIP, CS, RFLAGS, RSP, SS.
        for vector in [0x1F_i64, 0x2F, 0x7F, -0x80, -1] {
            let stack = [BASE + 64, vector as u64, 0x77, 0x10, 0x202, 0x88, 0x18];
            assert_eq!(step(&stack, BASE), Some(Link::Trap(0x77, 0x88, BASE + 64)));
        }
    }

    #[test]
    fn an_exception_has_its_error_code_in_between() {
        for vector in [0_u64, 14, 30] {
            let stack = [BASE + 64, vector, 0x55, 0x77, 0x10, 0x202, 0x88, 0x18];
            assert_eq!(step(&stack, BASE), Some(Link::Trap(0x77, 0x88, BASE + 64)));
        }
    }

    #[test]
    fn a_broken_chain_ends() {
        let stack = [BASE, 14, 0x55, 0x77];
        assert_eq!(step(&stack, 0), None);
        assert_eq!(step(&stack, BASE + 4), None, "not aligned");
        assert_eq!(step(&stack, BASE + 24), None, "no word behind the saved RBP");
        assert_eq!(step(&stack, BASE), None, "the frame is cut off");
        assert_eq!(step(&stack, !7), None, "the address space ends");
    }
}
