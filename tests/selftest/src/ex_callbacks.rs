//! Callback objects: order, level, and no call behind an unregister; UUIDs.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use kernel::ex::callback::Callback;
use kernel::ex::uuid;
use kernel::ke::thread::{Options, spawn};
use kernel::ke::timer::Due;
use kernel::ke::wait;
use kernel::ob::{self, ObRef, Path, Permanence};
use kernel::rtl::NtStatus;
use kernel::wide;
use sync::irql::{Dispatch, Irql, Passive};

use crate::ex::{expect, start, torture, unbroken};
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("ex_callbacks::routines_are_told_in_their_order", in_order),
    ("ex_callbacks::an_unregister_waits_for_its_routine", unregister_waits),
    ("ex_callbacks::come_and_go_under_fire", fire),
    ("ex_callbacks::uuids_are_nobodys_twice", uuids),
];

fn failed(what: &'static str) -> impl Fn(NtStatus) -> Verdict {
    move |status| Verdict::Fail(what, status.0.into(), 0)
}

/// Digits of those that were told.
static TOLD: AtomicU64 = AtomicU64::new(0);
/// The level at which.
static LEVEL: AtomicU32 = AtomicU32::new(0);

unsafe extern "win64" fn note(context: *mut c_void, first: *mut c_void, second: *mut c_void) {
    expect(first.addr() == 7 && second.addr() == 8);
    LEVEL.store(arch::irql::current().into(), Ordering::Relaxed);
    TOLD.store(TOLD.load(Ordering::Relaxed) * 10 + context.addr() as u64, Ordering::Relaxed);
}

fn tell(callback: &Callback, at: &mut Irql<Passive>) -> u64 {
    TOLD.store(0, Ordering::Relaxed);
    callback.notify(7, 8, at);
    TOLD.load(Ordering::Relaxed)
}

fn in_order(at: &mut Irql<Passive>) -> Result {
    start();
    let path = Path::new(wide!("\\Callback\\Test"));
    let names = ob::namespace();
    let temporary = Permanence::Temporary;
    let several = Callback::create(names, path, temporary, true, at)
        .map(crate::held::Named)
        .map_err(failed("no callback"))?;
    let same = Callback::create(names, path, temporary, false, at).map_err(failed("no callback"))?;
    check(same.is(&several), "another one of the same name", 0, 0)?;
    let mut all = [const { None }; 3];
    let mut made = Ok(());
    for (number, slot) in (1..).zip(&mut all) {
        // SAFETY: the routine keeps nothing, and is told numbers.
        match unsafe { Callback::register(&several, note, ptr::without_provenance_mut(number), at) } {
            Ok(it) => *slot = Some(it),
            Err(status) => made = Err(failed("not registered")(status)),
        }
    }
    let (told, mut gone) = (tell(&several, at), all);
    if let Some(second) = gone[1].take() {
        second.unregister(at);
    }
    let without = tell(&several, at);
    let raised = {
        let mut at = at.raise::<Dispatch>();
        several.notify(7, 8, &mut at);
        LEVEL.load(Ordering::Relaxed)
    };
    gone.into_iter().flatten().for_each(|it| it.unregister(at));
    made?;
    equal(told, 123, "told")?;
    equal(without, 13, "told without the second")?;
    equal(raised.into(), 2, "level of a routine")?;
    equal(tell(&several, at), 0, "told when nobody is registered")?;
    for name in [wide!("\\Callback\\SetSystemTime"), wide!("\\callback\\powerstate")] {
        names.open_as::<Callback>(Path::new(name), at).map_err(failed("NT's own is missing"))?;
    }
    only_one(at)?;
    unbroken(0, "sections")
}

fn only_one(at: &mut Irql<Passive>) -> Result {
    let single = Callback::unnamed(false, at).map_err(failed("no callback"))?;
    // SAFETY: the routine keeps nothing, and is told numbers.
    let register = |at: &mut Irql<Passive>| unsafe { Callback::register(&single, note, ptr::null_mut(), at) };
    let first = register(at).map_err(failed("not registered"))?;
    let second = register(at);
    let refused = second.as_ref().err().copied();
    second.into_iter().for_each(|it| it.unregister(at));
    first.unregister(at);
    check(
        refused.is_some_and(|it| it == NtStatus::UNSUCCESSFUL || it == NtStatus::INSUFFICIENT_RESOURCES),
        "a second one",
        0,
        0,
    )?;
    register(at).map_err(failed("not registered again"))?.unregister(at);
    Ok(())
}

static IS_INSIDE: AtomicBool = AtomicBool::new(false);
static MAY_LEAVE: AtomicBool = AtomicBool::new(false);

unsafe extern "win64" fn stay(_: *mut c_void, _: *mut c_void, _: *mut c_void) {
    IS_INSIDE.store(true, Ordering::Release);
    while !MAY_LEAVE.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    IS_INSIDE.store(false, Ordering::Release);
}

fn unregister_waits(at: &mut Irql<Passive>) -> Result {
    static SHARED: AtomicPtr<Callback> = AtomicPtr::new(ptr::null_mut());
    start();
    IS_INSIDE.store(false, Ordering::Relaxed);
    MAY_LEAVE.store(false, Ordering::Relaxed);
    let callback = Callback::unnamed(true, at).map_err(failed("no callback"))?;
    // SAFETY: the routine uses statics alone.
    let it = unsafe { Callback::register(&callback, stay, ptr::null_mut(), at) }
        .map_err(failed("not registered"))?;
    SHARED.store(callback.clone().into_raw().as_ptr(), Ordering::Release);
    let teller = |at: &mut Irql<Passive>, _| {
        let raw = ptr::NonNull::new(SHARED.swap(ptr::null_mut(), Ordering::Acquire));
        // SAFETY: the reference that was put there, taken once.
        let Some(callback) = raw.map(|raw| unsafe { ObRef::from_raw(raw) }) else { return expect(false) };
        callback.notify(0, 0, at);
    };
    let teller: kernel::ke::thread::Routine = teller;
    let Ok(told) = spawn(&Options::default(), teller, 0, at) else {
        it.unregister(at);
        let raw = ptr::NonNull::new(SHARED.swap(ptr::null_mut(), Ordering::Acquire));
        // SAFETY: as above: nobody else took it.
        raw.into_iter().for_each(|raw| drop(unsafe { ObRef::from_raw(raw) }));
        return Err(Verdict::Fail("no thread", 0, 0));
    };
    while !IS_INSIDE.load(Ordering::Acquire) {
        let _ = wait::delay(Due::In(1_000), at);
    }
    let leaver = |at: &mut Irql<Passive>, _| {
        let _ = wait::delay(Due::In(30_000), at);
        MAY_LEAVE.store(true, Ordering::Release);
    };
    let leaver: kernel::ke::thread::Routine = leaver;
    let leave = spawn(&Options::default(), leaver, 0, at);
    if leave.is_err() {
        MAY_LEAVE.store(true, Ordering::Release);
    }
    it.unregister(at);
    let was_inside = IS_INSIDE.load(Ordering::Acquire);
    let _ = wait::for_single(&*told, None, at);
    let leave = leave.map_err(failed("no thread"))?;
    let _ = wait::for_single(&*leave, None, at);
    check(!was_inside, "unregistered while the routine runs", 0, 0)?;
    unbroken(0, "sections")
}

/// Told by all.
static UNDER_FIRE: AtomicPtr<Callback> = AtomicPtr::new(ptr::null_mut());
static CALLS: AtomicU32 = AtomicU32::new(0);
static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// A thread's: set as long as it is registered.
static ALIVE: [AtomicBool; 8] = [const { AtomicBool::new(false) }; 8];

unsafe extern "win64" fn alive(context: *mut c_void, _: *mut c_void, _: *mut c_void) {
    expect(ALIVE[context.addr()].load(Ordering::Acquire));
    for _ in 0..20 {
        core::hint::spin_loop();
    }
    expect(ALIVE[context.addr()].load(Ordering::Acquire));
    CALLS.fetch_add(1, Ordering::Relaxed);
}

fn fire(at: &mut Irql<Passive>) -> Result {
    start();
    CALLS.store(0, Ordering::Relaxed);
    IS_REFUSED.store(false, Ordering::Relaxed);
    let callback = Callback::unnamed(true, at).map_err(failed("no callback"))?;
    UNDER_FIRE.store(callback.as_ptr().as_ptr(), Ordering::Release);
    let result = torture(
        |at, number| {
            let Some(raw) = ptr::NonNull::new(UNDER_FIRE.load(Ordering::Acquire)) else {
                return expect(false);
            };
            // SAFETY: the test keeps a reference until its threads have ended.
            let callback: ObRef<Callback> = unsafe { ObRef::of_raw(raw) };
            let mut random = Random::new(number as u64);
            for _ in 0..300 {
                ALIVE[number].store(true, Ordering::Release);
                let context = ptr::without_provenance_mut(number);
                // SAFETY: the routine uses statics alone.
                match unsafe { Callback::register(&callback, alive, context, at) } {
                    Ok(it) => {
                        if random.below(4) == 0 {
                            let mut at = at.raise::<Dispatch>();
                            callback.notify(0, 0, &mut at);
                        } else {
                            callback.notify(0, 0, at);
                        }
                        it.unregister(at);
                    }
                    Err(_) => IS_REFUSED.store(true, Ordering::Relaxed),
                }
                ALIVE[number].store(false, Ordering::Release);
                callback.notify(0, 0, at);
            }
        },
        at,
    );
    result?;
    check(!IS_REFUSED.load(Ordering::Relaxed), "memory was refused", 0, 0)?;
    let calls = CALLS.load(Ordering::Relaxed);
    check(calls >= 300, "hardly anybody was told", calls.into(), 0)?;
    unbroken(0, "sections")
}

/// For a crash.
#[inline(never)]
pub(crate) unsafe extern "win64" fn callback_forgets_a_raise(_: *mut c_void, _: *mut c_void, _: *mut c_void) {
    // SAFETY: it is the crash: whoever has called this looks at the level.
    unsafe { arch::irql::set(15) };
}

fn uuids(at: &mut Irql<Passive>) -> Result {
    const EACH: usize = 400;
    /// Time of each, by thread: 60 bits.
    static TIMES: [[AtomicU64; EACH]; 8] = [const { [const { AtomicU64::new(0) }; EACH] }; 8];
    start();
    let made = torture(
        |_, number| {
            for slot in &TIMES[number] {
                let (guid, status) = uuid::create();
                expect(
                    status == NtStatus::UUID_LOCAL_ONLY && guid.data3 >> 12 == 1 && guid.data4[0] >> 6 == 2,
                );
                let time =
                    u64::from(guid.data3 & 0xFFF) << 48 | u64::from(guid.data2) << 32 | u64::from(guid.data1);
                slot.store(time, Ordering::Relaxed);
            }
        },
        at,
    );
    made?;
    // Each thread's rise, so two of one are apart; those of two threads are merged.
    for (number, one) in TIMES.iter().enumerate() {
        let time = |slot: &AtomicU64| slot.load(Ordering::Relaxed);
        check(one.is_sorted_by(|a, b| time(a) < time(b) || time(a) == 0), "one twice", number as u64, 0)?;
        for other in &TIMES[..number] {
            let (mut a, mut b) = (one.iter().map(time).peekable(), other.iter().map(time).peekable());
            while let (Some(x), Some(y)) = (a.peek().copied(), b.peek().copied()) {
                check(x != y || x == 0, "two threads' are the same", x, 0)?;
                if x <= y {
                    a.next()
                } else {
                    b.next()
                };
            }
        }
    }
    unbroken(0, "sections")
}
