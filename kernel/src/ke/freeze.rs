//! Stopping the other processors, and what an NMI means.
//!
//! An NMI is legitimate if somebody announced it: the target's counter is raised before it is sent. NMIs merge on the way, so
//! fewer may arrive than were announced, never more; one more is hardware's, and a bugcheck.
//!
//! Called by:  bugcheck.rs (freeze), the self-tests (an NMI that does nothing).
//! IRQL:       any. The NMI handler takes no lock and does not fault.

use core::sync::atomic::Ordering;
#[cfg(feature = "verifier")]
use core::sync::atomic::{AtomicU64, AtomicUsize};

use arch::trap::TrapFrame;

use super::prcb::{self, Processor};
use super::{bugcheck, clock};

/// How long the freezing processor waits for the others, in microseconds: an NMI is taken between two instructions, so this
/// only covers a host that runs the virtual processors in turn.
const FREEZE_MICROSECONDS: u64 = 500_000;

/// Sends an NMI to `target` that its handler will know as ours; none to one that isn't online.
pub fn send_nmi(target: &Processor) {
    if target.prcb().state() != prcb::State::Online {
        return;
    }
    target.prcb().nmi_announced.fetch_add(1, Ordering::SeqCst);
    // SAFETY: it is online, so its tables are loaded.
    unsafe { arch::apic::send_nmi(target.prcb().apic_id()) };
}

/// Sees every announced NMI: for self-tests that want to know what they hit. Takes no lock, does not fault.
#[cfg(feature = "verifier")]
pub type Witness = fn(&TrapFrame);

#[cfg(feature = "verifier")]
static WITNESS: AtomicUsize = AtomicUsize::new(0);

/// Installs a witness. Checked build: the release image has no such door.
#[cfg(feature = "verifier")]
pub fn set_witness(witness: Option<Witness>) {
    WITNESS.store(witness.map_or(0, |witness| witness as usize), Ordering::Release);
}

#[cfg(feature = "verifier")]
fn show(frame: &TrapFrame) {
    let address = WITNESS.load(Ordering::Acquire);
    // SAFETY: only `set_witness` stores here, and only a `Witness`.
    let witness = (address != 0).then(|| unsafe { core::mem::transmute::<usize, Witness>(address) });
    if let Some(witness) = witness {
        witness(frame);
    }
}

/// How long whoever takes the next NMI stays in it, in microseconds.
#[cfg(feature = "verifier")]
static HELD: AtomicU64 = AtomicU64::new(0);

/// Sends `target` an NMI whose handler returns only after `microseconds`, unless another one comes first, which is held in its place.
/// Checked build: for tests.
#[cfg(feature = "verifier")]
pub fn hold_in_nmi(target: &Processor, microseconds: u64) {
    HELD.store(microseconds, Ordering::Relaxed);
    send_nmi(target);
}

/// The NMI handler.
pub(crate) fn nmi(frame: &mut TrapFrame) {
    let here = prcb::get(arch::pcr::number());
    if bugcheck::is_under_way() {
        freeze(here, frame);
    }
    let announced = here.map_or(0, |processor| processor.prcb().nmi_announced.load(Ordering::SeqCst));
    let taken = here.map_or(0, |processor| processor.pcr().nmi_count.load(Ordering::Relaxed));
    if taken > announced {
        bugcheck::with_frame(
            bugcheck::StopCode::NmiHardwareFailure,
            [taken.into(), announced.into(), frame.rip, 0],
            frame,
        );
    }
    #[cfg(feature = "verifier")]
    {
        show(frame);
        super::late::send_on();
        clock::stall(HELD.swap(0, Ordering::Relaxed));
    }
}

/// This processor shows where it is and stops for good.
fn freeze(here: Option<&Processor>, frame: &TrapFrame) -> ! {
    if let Some(processor) = here {
        processor.prcb().frozen_in.store(core::ptr::from_ref(frame) as u64, Ordering::Release);
    }
    arch::cpu::halt_forever()
}

/// Freezes every other processor that is online; returns how many didn't stop in time.
pub(super) fn all_others() -> u32 {
    let me = arch::pcr::number();
    let others = || {
        prcb::all().filter(|other| other.prcb().number() != me && other.prcb().state() == prcb::State::Online)
    };
    for other in others() {
        send_nmi(other);
    }
    let start = clock::since_start();
    loop {
        let running = others().filter(|other| frame_of(other).is_none()).count() as u32;
        if running == 0 || clock::since_start() - start > FREEZE_MICROSECONDS {
            return running;
        }
        arch::cpu::spin_hint();
    }
}

/// The frame that a processor froze in.
pub(super) fn frame_of(processor: &Processor) -> Option<&TrapFrame> {
    let address = processor.prcb().frozen_in.load(Ordering::Acquire);
    // SAFETY: stored by `freeze` on that processor, which never leaves the handler: its NMI stack stays as it is.
    (address != 0).then(|| unsafe { &*(address as *const TrapFrame) })
}
