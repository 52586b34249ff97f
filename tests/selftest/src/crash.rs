//! Deliberate bugchecks, one a boot: the harness compares the report (`crash=NAME`, ci/src/crash.rs).

use kernel::ke::bugcheck::{self, StopCode, bugcheck};
use kernel::ke::prcb;
use sync::irql::{Dispatch, Irql, Passive};

use crate::everywhere;

/// Does it; unknown names are a bugcheck as well, with another code than any that is compared.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> ! {
    kernel::info!("crash: {name}");
    match name {
        "manual" => bugcheck(StopCode::ManuallyInitiatedCrash, [1, 2, 3, 4]),
        "stack_overflow" => {
            kernel::info!("{}", overflow(1));
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
        "fault_at_dispatch" => {
            let _raised = at.raise::<Dispatch>();
            // SAFETY: none, as above.
            unsafe { core::arch::asm!("mov al, [{}]", in(reg) 16_u64, out("al") _) };
        }
        "hang" => loop {
            arch::cpu::spin_hint();
        },
        _ => {}
    }
    bugcheck(StopCode::MaximumWaitObjectsExceeded, [0; 4])
}

/// Recurses for ever, with frames that can't be merged.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    if frame[0] == 0 { 0 } else { overflow(core::hint::black_box(depth + 1)) + frame[31] }
}
