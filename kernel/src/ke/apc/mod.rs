//! Asynchronous procedure calls: routines that run in a certain thread's context, at APC or PASSIVE.
//!
//! | kind | routine runs at | delivered while the thread |
//! |---|---|---|
//! | special kernel | APC | is below APC, in no guarded region |
//! | normal kernel | APC, then PASSIVE | is below APC, in no critical or guarded region, holds no mutant, runs no other normal one |
//! | user | APC, then user mode | goes back to user mode after an alertable wait: queued and made pending; there is no user mode yet |
//!
//! Owns:       [`KApc`], [`Apc`], a thread's queues of them (`ApcState`). Reading order: `queue` (insert, remove, run down), `deliver`,
//!             [`region`], [`alert`].
//! IRQL:       insert and remove at or below DISPATCH; delivery from PASSIVE.
//! Locks:      the thread's (`ThreadLock`).
//! Delivery:   on the way out of an interrupt of PASSIVE code (`arch::trap`, step 5); there, too, by vector 0x1F, which waits in IRR until
//!             the level falls below APC: the thread's processor sends it, or another one, or the switch to a thread that has
//!             APCs; at the end of a region; before a wait and, where an APC ended it, in its middle.
//! Invariants: A1 an APC's `thread` is not null <=> it is in a queue of that thread. It changes from null by an exchange under that thread's
//!                lock, and back to null under the same.
//!             A2 whoever made it null never touches the APC again but to call what it has copied: it may be queued anew, or freed, from
//!                then on.
//!             A3 a queue is not empty <=> its sign is set in the thread's `attention` (under the lock).
//!             A4 `disables` and `normal_under_way` are written by the thread itself; others read them while it waits.
//! Not as NT:  an APC is told its thread when it is queued, not before. A mutant of any kind disables normal APCs while it is held.
//!             There is no attached process, so one set of queues.
//! Tests:      tests/models/tests/attention.rs; selftest `apcs::*`; crash `apc_*`; mutants in tests/mutants/threads.
//! Sources:    WDK, "Types of APCs", "Disabling APCs", `KeEnterCriticalRegion`, `KeEnterGuardedRegion`, "Waits and APCs".

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use sync::irql::{Apc as ApcLevel, AtOrBelow, Below, Dispatch, Irql, ObjectLock, Passive};

use super::thread::Thread;

pub mod alert;
mod deliver;
mod queue;
pub mod region;

pub(crate) use deliver::deliver_at_exit;
pub(in crate::ke) use deliver::{deliver_before_a_wait, requests_delivery};
pub(in crate::ke) use queue::{close, is_deliverable, notify_termination, run_down};
pub use queue::{insert, remove};
pub use region::{Critical, Guarded, are_all_disabled, are_disabled, enter_critical, enter_guarded};

/// NT's PKKERNEL_ROUTINE: the APC, and where its normal routine, its context and the two arguments are kept, which it may change.
pub type KernelRoutine = unsafe extern "win64" fn(
    *mut KApc,
    *mut Option<NormalRoutine>,
    *mut *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
);
/// NT's PKNORMAL_ROUTINE: context and arguments.
pub type NormalRoutine = unsafe extern "win64" fn(*mut c_void, *mut c_void, *mut c_void);
/// NT's PKRUNDOWN_ROUTINE: for an APC whose thread ended before it was delivered.
pub type RundownRoutine = unsafe extern "win64" fn(*mut KApc);

/// On whose behalf. NT's MODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum ProcessorMode {
    /// The kernel's.
    Kernel = 0,
    /// The user's.
    User = 1,
}

/// An APC as drivers know it: NT's KAPC, byte for byte.
#[repr(C)]
pub struct KApc {
    kind: u8,
    _spare: u8,
    size: u8,
    _spare_too: u8,
    _spare_long: u32,
    /// A1.
    thread: AtomicPtr<Thread>,
    /// In a queue: the thread's lock.
    links: UnsafeCell<Links>,
    kernel_routine: KernelRoutine,
    rundown_routine: Option<RundownRoutine>,
    normal_routine: Option<NormalRoutine>,
    context: *mut c_void,
    /// Written by the insert that won, under the thread's lock.
    arguments: UnsafeCell<[*mut c_void; 2]>,
    _state_index: i8,
    mode: ProcessorMode,
    /// What drivers look at: as A1.
    inserted: AtomicBool,
}

struct Links {
    next: *mut KApc,
    previous: *mut KApc,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<KApc>() == 88);
    assert!(offset_of!(KApc, thread) == 8 && offset_of!(KApc, links) == 16);
    assert!(offset_of!(KApc, kernel_routine) == 32 && offset_of!(KApc, rundown_routine) == 40);
    assert!(offset_of!(KApc, normal_routine) == 48 && offset_of!(KApc, context) == 56);
    assert!(offset_of!(KApc, arguments) == 64 && offset_of!(KApc, _state_index) == 80);
    assert!(offset_of!(KApc, mode) == 81 && offset_of!(KApc, inserted) == 82);
};

sync::nt_layout! {
    [] KApc = "KAPC" {
        kind => "Type", _spare => "SpareByte0", size => "Size", _spare_too => "SpareByte1", _spare_long => "SpareLong0",
        thread => "Thread", links => "ApcListEntry", kernel_routine => "KernelRoutine",
        rundown_routine => "RundownRoutine", normal_routine => "NormalRoutine", context => "NormalContext",
        arguments => "SystemArgument1" ..= "SystemArgument2", _state_index => "ApcStateIndex", mode => "ApcMode",
        inserted => "Inserted",
    }
}

// SAFETY: `links` and `arguments` are accessed under the lock of the thread in whose queue it is; the rest is atomics or constant. Who
// inserts it answers for the routines and their context.
unsafe impl Sync for KApc {}
// SAFETY: as above; an APC that is moved is in no queue.
unsafe impl Send for KApc {}

impl KApc {
    /// NT's object type for an APC.
    const APC_OBJECT: u8 = 18;

    /// In no queue. Without a normal routine it is a special one, in kernel mode.
    #[doc(alias = "KeInitializeApc")]
    pub const fn new(
        mode: ProcessorMode,
        kernel_routine: KernelRoutine,
        rundown_routine: Option<RundownRoutine>,
        normal_routine: Option<NormalRoutine>,
        context: *mut c_void,
    ) -> Self {
        Self {
            kind: Self::APC_OBJECT,
            _spare: 0,
            size: size_of::<Self>() as u8,
            _spare_too: 0,
            _spare_long: 0,
            thread: AtomicPtr::new(ptr::null_mut()),
            links: UnsafeCell::new(Links { next: ptr::null_mut(), previous: ptr::null_mut() }),
            kernel_routine,
            rundown_routine,
            normal_routine,
            context,
            arguments: UnsafeCell::new([ptr::null_mut(); 2]),
            _state_index: 0,
            mode,
            inserted: AtomicBool::new(false),
        }
    }

    /// Is it in a queue? Stale at once.
    pub fn is_queued(&self) -> bool {
        self.inserted.load(Ordering::Relaxed)
    }

    fn kind(&self) -> Kind {
        match (self.mode, self.normal_routine) {
            (ProcessorMode::User, _) => Kind::User,
            (ProcessorMode::Kernel, Some(_)) => Kind::Normal,
            (ProcessorMode::Kernel, None) => Kind::Special,
        }
    }
}

/// Which of a thread's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Special = 0,
    Normal = 1,
    User = 2,
}

/// A thread's part.
pub(in crate::ke) struct ApcState {
    /// Under the thread's lock.
    queues: UnsafeCell<queue::Queues>,
    /// A4. Low half: critical regions, high half: guarded regions that it is in.
    disables: AtomicU32,
    /// A4. A normal kernel APC's routine runs.
    normal_under_way: AtomicBool,
}

// SAFETY: `queues` is accessed under the thread's lock; the rest is atomics.
unsafe impl Sync for ApcState {}

impl ApcState {
    pub(in crate::ke) const fn new() -> Self {
        Self {
            queues: UnsafeCell::new(queue::Queues::new()),
            disables: AtomicU32::new(0),
            normal_under_way: AtomicBool::new(false),
        }
    }

    /// That of a thread that has ended, which took everything out and left all regions, becomes a new one's.
    pub(in crate::ke) fn renew(&mut self) {
        self.queues.get_mut().open();
        *self.normal_under_way.get_mut() = false;
    }

    /// Regions that it is in: critical in the low half, guarded in the high one.
    pub(in crate::ke) fn disables(&self) -> u32 {
        self.disables.load(Ordering::Relaxed)
    }
}

/// The levels that an APC's routine may run at: [`sync::irql::Apc`], that of a special one, and PASSIVE, that of a normal one.
pub trait ApcRoutineLevel: sync::irql::Level + Sized {
    #[doc(hidden)]
    const KERNEL: KernelRoutine;
    #[doc(hidden)]
    const NORMAL: Option<NormalRoutine>;
}

impl ApcRoutineLevel for ApcLevel {
    const KERNEL: KernelRoutine = run_special;
    const NORMAL: Option<NormalRoutine> = None;
}

impl ApcRoutineLevel for Passive {
    const KERNEL: KernelRoutine = name_itself;
    const NORMAL: Option<NormalRoutine> = Some(run_normal);
}

/// What an [`Apc`] calls: itself, the level, the arguments of the insert that won.
pub type ApcRoutine<L> = fn(&'static Apc<L>, &mut Irql<L>, [usize; 2]);

/// An asynchronous procedure call that safe code can queue: it lives for ever, so none is dropped while queued. `Apc` is a special one,
/// `Apc<Passive>` a normal one.
#[repr(C)]
pub struct Apc<L: ApcRoutineLevel = ApcLevel> {
    raw: KApc,
    routine: ApcRoutine<L>,
    level: PhantomData<fn(&mut Irql<L>)>,
}

impl<L: ApcRoutineLevel> Apc<L> {
    /// In no queue.
    #[doc(alias = "KeInitializeApc")]
    pub const fn new(routine: ApcRoutine<L>) -> Self {
        let raw = KApc::new(ProcessorMode::Kernel, L::KERNEL, None, L::NORMAL, ptr::null_mut());
        Self { raw, routine, level: PhantomData }
    }

    /// Queues it to `thread`, unless it is queued already, or the thread has ended; false then. If that waits, and the APC can be
    /// delivered, it is boosted by `increment`.
    #[doc(alias = "KeInsertQueueApc")]
    pub fn queue<M>(
        &'static self,
        thread: &Thread,
        arguments: [usize; 2],
        increment: u8,
        at: &mut Irql<M>,
    ) -> bool
    where
        M: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        let arguments = arguments.map(ptr::without_provenance_mut);
        // SAFETY: it is `'static`; the routines are those that `new` paired, their arguments numbers.
        unsafe { insert(NonNull::from(&self.raw), thread, arguments, increment, at) }
    }

    /// Takes it out of the queue of `thread`: true if it was there and had not started.
    #[doc(alias = "KeRemoveQueueApc")]
    pub fn remove<M>(&'static self, thread: &Thread, at: &mut Irql<M>) -> bool
    where
        M: Below<ObjectLock> + AtOrBelow<Dispatch>,
    {
        remove(&self.raw, thread, at)
    }

    /// Is it queued? Stale at once.
    pub fn is_queued(&self) -> bool {
        self.raw.is_queued()
    }
}

/// The address of what an APC really runs, for reports.
///
/// # Safety
/// `apc` is valid.
unsafe fn culprit(apc: *const KApc, routine: u64) -> u64 {
    // SAFETY: the caller's; only an `Apc` has these routines.
    unsafe {
        if routine == run_special as *const () as u64 {
            return (*apc.cast::<Apc<ApcLevel>>()).routine as usize as u64;
        }
        if routine == run_normal as *const () as u64 {
            return (*apc.cast::<Apc<Passive>>()).routine as usize as u64;
        }
    }
    routine
}

/// # Safety
/// Called for an APC made by `Apc::<ApcLevel>::new`, at APC. The caller compares the level at the end.
unsafe extern "win64" fn run_special(
    apc: *mut KApc,
    _: *mut Option<NormalRoutine>,
    _: *mut *mut c_void,
    first: *mut *mut c_void,
    second: *mut *mut c_void,
) {
    // SAFETY: 1. the KAPC is the first field of an `Apc` that was queued as `&'static`. 2. APC is the level (the caller's), whose token
    //         the caller doesn't use meanwhile. 3. the arguments are the caller's variables.
    unsafe {
        let apc = &*apc.cast::<Apc<ApcLevel>>();
        let arguments = [(*first).addr(), (*second).addr()];
        Irql::<ApcLevel>::lend(|at| (apc.routine)(apc, at, arguments));
    }
}

/// The kernel routine of a normal one: has its normal routine called with itself as the context.
///
/// # Safety
/// Called for an APC made by `Apc::<Passive>::new`.
unsafe extern "win64" fn name_itself(
    apc: *mut KApc,
    _: *mut Option<NormalRoutine>,
    context: *mut *mut c_void,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) {
    // SAFETY: the caller's variable.
    unsafe { *context = apc.cast() };
}

/// # Safety
/// As [`run_special`], for `Apc::<Passive>`, at PASSIVE, with what [`name_itself`] left.
unsafe extern "win64" fn run_normal(context: *mut c_void, first: *mut c_void, second: *mut c_void) {
    // SAFETY: as in `run_special`.
    unsafe {
        let apc = &*context.cast::<Apc<Passive>>();
        Irql::<Passive>::lend(|at| (apc.routine)(apc, at, [first.addr(), second.addr()]));
    }
}
