//! Each exception reaches its handler: really raised where software can, through its stub with a built frame otherwise.

use sync::irql::{Dispatch, Irql, Passive};

use crate::probe::{Seen, attempt, built_frame, read};
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("exceptions::software_raised_ones_reach_the_handler", raised),
    ("exceptions::stubs_take_built_frames", built),
    ("exceptions::the_interrupted_level_is_noted_and_kept", level_kept),
];

fn expect(seen: Option<Seen>, vector: u8) -> Result {
    match seen {
        Some(seen) => equal(seen.vector.into(), vector.into(), "another vector"),
        None => Err(Verdict::Fail("no exception", vector.into(), 0)),
    }
}

fn raised(_: &mut Irql<Passive>) -> Result {
    const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;
    // #DE: division by zero.
    expect(attempt!("xor edx, edx; xor eax, eax; mov ecx, 0; div ecx", 0_u64), 0)?;
    // #DB: the one-byte INT1, then a single step.
    expect(attempt!(".byte 0xF1", 0_u64), 1)?;
    expect(attempt!("pushfq; or dword ptr [rsp], 0x100; popfq; nop; nop", 0_u64), 1)?;
    expect(attempt!("int3", 0_u64), 3)?;
    expect(attempt!("ud2", 0_u64), 6)?;
    // No #SS: a bad RSP can't take the frame (#DF), and TCG gives #GP for a stack reference through another register.
    // #NM: FPU instructions trap until a thread owns FPU state.
    expect(attempt!("fninit", 0_u64), 7)?;
    // #GP: a data reference that isn't, and a selector beyond the GDT.
    expect(attempt!("mov al, [rdi]", NON_CANONICAL), 13)?;
    expect(attempt!("mov fs, edi", 0xFFF8_u64), 13)?;
    expect(read(0), 14)
}

fn built(_: &mut Irql<Passive>) -> Result {
    const WITH_ERROR: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
    // 2 is the NMI, whose handler wants it announced; a self-test of its own sends real ones.
    for vector in (0..=30).filter(|&vector| vector != 2) {
        let has_error = WITH_ERROR.contains(&vector);
        let seen = built_frame(vector, has_error);
        expect(seen, vector)?;
        let error = seen.map_or(0, |seen| seen.error);
        equal(error, if has_error { 0x55 } else { 0 }, "another error code")?;
    }
    Ok(())
}

fn level_kept(at: &mut Irql<Passive>) -> Result {
    let raised = at.raise::<Dispatch>();
    let seen = read(0);
    check(
        raised.level() == arch::irql::current(),
        "another level afterwards",
        arch::irql::current().into(),
        2,
    )?;
    equal(seen.map_or(99, |seen| seen.irql), 2, "another level in the frame")
}
