//! The instructions that may touch the user's memory: alone in running with EFLAGS.AC set, and with a landing each for the case
//! that the memory can't be reached.
//!
//! ```text
//!  routine:  stac                            a fault here that nothing resolves: RIP = landing
//!            what touches the user's memory  ──────────────────────────────────► landing: clac
//!            clac                                                                         return RAX,
//!            return 0                                                                     the fault's status
//! ```
//!
//! A fault between a routine's first and last byte is looked up by [`landing`]. No routine pushes anything or changes a register
//! that a caller keeps, so that a landing finds nothing to undo.
//!
//! STAC and CLAC are there only where SMAP is. The image has NOPs in their places, three bytes each, which [`use_smap`] replaces
//! once; the places are listed in a section of their own. The entries of interrupts and exceptions (`trap`) are among them:
//! whoever was interrupted, what runs next runs with AC clear.
//!
//! Addresses are not checked here: the caller has made sure that what is to be the user's is in the user's half.
//!
//! Invariants: I1 the list of places holds addresses of three-byte NOPs of this image, each with what belongs there.
//!             I2 AC is set nowhere but between a STAC and a CLAC of this file.
//! Tests:      selftest `memory_user::*`; crash `user_*`.
//! Sources:    SDM vol. 3, "Supervisor-Mode Access Prevention"; vol. 2, "STAC", "CLAC".

use core::arch::global_asm;

/// A place for CLAC, for assembly: a NOP that `use_smap` replaces.
macro_rules! clac {
    () => {
        concat!(
            "991: .byte 0x0F, 0x1F, 0x00\n",
            ".pushsection .kirql_smap, \"a\"\n",
            ".quad 991b, 0x00CA010F\n",
            ".popsection"
        )
    };
}
pub(super) use clac;

/// The same for STAC.
macro_rules! stac {
    () => {
        concat!(
            "991: .byte 0x0F, 0x1F, 0x00\n",
            ".pushsection .kirql_smap, \"a\"\n",
            ".quad 991b, 0x00CB010F\n",
            ".popsection"
        )
    };
}

/// A routine: its name, its instructions. Declares it, and lists its bytes with its landing.
macro_rules! routines {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal ($($argument:ident: $type:ty),*) { $($text:literal)* })*) => {
        $(global_asm!(
            concat!(".type ", $symbol, ", @function"),
            ".balign 16",
            concat!(".global ", $symbol),
            concat!($symbol, ":"),
            stac!(),
            $($text,)*
            clac!(),
            "xor eax, eax",
            "ret",
            "992:",
            clac!(),
            "ret",
            concat!(".size ", $symbol, ", . - ", $symbol),
            ".pushsection .kirql_landings, \"a\"",
            concat!(".quad ", $symbol, ", 992b, 992b"),
            ".popsection",
        );)*

        unsafe extern "sysv64" {
            $(
                $(#[$doc])*
                ///
                /// Zero, or what the fault's handler put into RAX for its landing; then some of it may have been done.
                ///
                /// # Safety
                /// The kernel's side of it, if there is one, is valid for it; the user's is in the user's half in whole. Below DISPATCH,
                /// interrupts on.
                #[link_name = $symbol]
                pub fn $name($($argument: $type),*) -> u64;
            )*
        }
    };
}

routines! {
    /// Copies `bytes` bytes; either side may be the user's.
    copy = "kirql_user_copy"(to: *mut u8, from: *const u8, bytes: u64) {
        "mov rcx, rdx"
        "shr rcx, 3"
        "rep movsq"
        "mov ecx, edx"
        "and ecx, 7"
        "rep movsb"
    }
    /// Fills `bytes` bytes of the user's with `byte`.
    fill = "kirql_user_fill"(to: u64, byte: u64, bytes: u64) {
        "mov rcx, rdx"
        "mov eax, esi"
        "rep stosb"
    }
    /// Reads a byte of the user's.
    read = "kirql_user_read"(address: u64) {
        "mov al, [rdi]"
    }
    /// Reads a byte of the user's and writes it back, as one operation.
    write = "kirql_user_write"(address: u64) {
        "lock or byte ptr [rdi], 0"
    }
    /// Puts `new` where `old` is, in an aligned word of the user's; stores what was found.
    exchange_32 = "kirql_user_exchange_32"(address: u64, old: u64, new: u64, found: *mut u32) {
        "mov eax, esi"
        "lock cmpxchg [rdi], edx"
        "mov [rcx], eax"
    }
    /// The same for eight bytes.
    exchange_64 = "kirql_user_exchange_64"(address: u64, old: u64, new: u64, found: *mut u64) {
        "mov rax, rsi"
        "lock cmpxchg [rdi], rdx"
        "mov [rcx], rax"
    }
}

unsafe extern "C" {
    safe static __landings_start: u8;
    safe static __landings_end: u8;
    safe static __smap_start: u8;
    safe static __smap_end: u8;
}

/// The words between two marks of the linker script, in groups of `N`.
fn table<const N: usize>(start: &'static u8, end: &'static u8) -> &'static [[u64; N]] {
    let (start, end) = (core::ptr::from_ref(start), core::ptr::from_ref(end));
    let count = (end.addr() - start.addr()) / size_of::<[u64; N]>();
    // SAFETY: the linker script puts the marks around the section, which holds whole groups of words and is constant.
    unsafe { core::slice::from_raw_parts(start.cast(), count) }
}

/// Where code goes on that faulted at `rip`, if that is one of the instructions here: with RAX other than zero.
pub fn landing(rip: u64) -> Option<u64> {
    let routines = table::<3>(&__landings_start, &__landings_end);
    routines.iter().find(|&&[start, end, _]| (start..end).contains(&rip)).map(|&[.., landing]| landing)
}

/// Puts STAC and CLAC in their places. `writable` says where the byte at an address of the image can be written.
///
/// # Safety
/// 1. SMAP is there, and no other processor runs yet. 2. What `writable` gives is the same memory, mapped to be written.
pub unsafe fn use_smap(writable: impl Fn(u64) -> *mut u8) {
    for &[place, opcode] in table::<2>(&__smap_start, &__smap_end) {
        let bytes = opcode.to_le_bytes();
        // SAFETY: the caller's; a place is three bytes (I1).
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), writable(place), 3) };
    }
}
