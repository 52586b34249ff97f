//! Time: monotonic across processors, fresh in the shared page, and no interrupt that nobody needs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::vector;
use kernel::boot::command_line::CommandLine;
use kernel::boot::facts;
use kernel::ke::dpc::Dpc;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, Processor};
use kernel::ke::shared_data::{self, SharedData};
use kernel::ke::timer::{Due, Options, Timer, TimerKind};
use kernel::ke::{clock, tick, wait};
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::everywhere;
use crate::probe;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("clock::monotonic_across_processors", monotonic),
    ("clock::runs_at_the_rate_of_the_pit", rate),
    ("clock::shared_page_is_at_its_address_and_read_only", shared_page),
    ("clock::shared_page_has_what_drivers_read_inline", inline_readers),
    ("clock::queries_agree_and_a_stall_lasts", queries),
    ("clock::system_time_is_the_real_time_clocks", real_time),
    ("clock::shared_page_is_updated_while_busy", kept_up_to_date),
    ("clock::goes_on_when_its_owner_goes_idle", handed_over),
    ("clock::shared_page_is_fresh_after_all_were_idle", fresh_after_idle),
    ("clock::a_thread_alone_is_left_alone", busy_interrupts),
    ("clock::idle_processors_are_left_alone", idle_interrupts),
];

/// Each clock against the latest time of it that any processor has handed over; a precise one against the shared page's, too, which the
/// clock's owner has. A real processor that read its counter ahead of the loads in front would be behind; an emulator reads in order.
fn monotonic(at: &mut Irql<Passive>) -> Result {
    type Clock = fn() -> u64;
    /// A clock, and which ones, itself included, it is not behind.
    const CLOCKS: [(Clock, &[usize]); 6] = [
        (clock::interrupt_time, &[0]),
        (clock::interrupt_time_precise, &[0, 1]),
        (clock::system_time, &[2]),
        (clock::system_time_precise, &[2, 3]),
        (clock::tick_count, &[4]),
        (clock::performance_counter, &[5]),
    ];
    static LATEST: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
    static BACKWARDS: AtomicU32 = AtomicU32::new(0);
    BACKWARDS.store(0, Ordering::Relaxed);
    // Another run of this test may find a system time that was set back.
    LATEST.iter().for_each(|latest| latest.store(0, Ordering::Relaxed));
    everywhere::run(at, |_, _| {
        for _ in 0..20_000 / prcb::count() {
            for ((clock, ahead_of), latest) in CLOCKS.iter().zip(&LATEST) {
                let before = ahead_of.iter().map(|&other| LATEST[other].load(Ordering::Acquire)).max();
                let now = clock();
                BACKWARDS.fetch_add(u32::from(Some(now) < before), Ordering::Relaxed);
                latest.fetch_max(now, Ordering::AcqRel);
            }
        }
    });
    equal(BACKWARDS.load(Ordering::Relaxed).into(), 0, "times before one that another processor had read")
}

fn shared_page(_: &mut Irql<Passive>) -> Result {
    // SAFETY: the page is mapped there, readable, for good; all its fields are atomics.
    let page = unsafe { &*(shared_data::ADDRESS as *const SharedData) };
    let before = clock::interrupt_time();
    let (interrupt, system) = (page.interrupt_time.read(), page.system_time.read());
    check(
        interrupt >= before && interrupt <= clock::interrupt_time_precise(),
        "interrupt time",
        interrupt,
        before,
    )?;
    // 2020 to 2100, unless the loader had no date.
    let year_2020 = 132_223_104_000_000_000;
    let year_2100 = 157_469_184_000_000_000;
    let dated = facts().info.unix_seconds.is_none() || (year_2020..year_2100).contains(&system);
    check(dated, "system time", system, 0)?;
    equal(page.tick_count.read(), page.interrupt_time.read() / shared_data::TICK, "tick count")?;
    check(probe::store(shared_data::ADDRESS + 8).is_some(), "a write didn't fault", 0, 0)
}

/// A value of the page by its place, as a driver's macros have it.
fn inline<T: Copy>(offset: u64) -> T {
    // SAFETY: within the page, which is mapped readable for good, at a multiple of the size; any bytes are a number.
    unsafe { ((shared_data::ADDRESS + offset) as *const T).read_volatile() }
}

/// The three words of a KSYSTEM_TIME.
fn inline_time(offset: u64) -> u64 {
    loop {
        let (high, low, again) =
            (inline::<u32>(offset + 4), inline::<u32>(offset), inline::<u32>(offset + 8));
        if high == again {
            return u64::from(high) << 32 | u64::from(low);
        }
    }
}

/// With the offsets of NT's headers as numbers, and against what the kernel's own queries say.
fn inline_readers(_: &mut Irql<Passive>) -> Result {
    let times: [(u64, fn() -> u64); 3] =
        [(0x08, clock::interrupt_time), (0x14, clock::system_time), (0x320, clock::tick_count)];
    for (offset, query) in times {
        let (before, found, after) = (query(), inline_time(offset), query());
        check((before..=after).contains(&found), "a time read inline", offset, found)?;
    }
    let increment = u64::from(clock::time_increment());
    let (ticks, time) = (inline_time(0x320), inline_time(0x08));
    check(
        time / increment >= ticks && time / increment - ticks < 1000,
        "ticks of the increment",
        ticks,
        time,
    )?;
    // GetTickCount's arithmetic: milliseconds.
    let milliseconds = (ticks * u64::from(inline::<u32>(0x04))) >> 24;
    equal(milliseconds, ticks * increment / 10_000, "milliseconds of the ticks")?;
    equal(inline_time(0x20), 0, "time zone bias")?;
    let (major, minor, build) = shared_data::VERSION;
    let words = [
        (0x244, 2 << 20, "large page"),
        (0x260, build, "build"),
        (0x264, 1, "product: a workstation"),
        (0x26C, major, "major version"),
        (0x270, minor, "minor version"),
        (0x3C0, prcb::count(), "processors"),
    ];
    for (offset, wanted, what) in words {
        equal(inline::<u32>(offset).into(), wanted.into(), what)?;
    }
    for (offset, wanted, what) in
        [(0x2C, 0x8664, "lowest image"), (0x2E, 0x8664, "highest"), (0x26A, 9, "AMD64")]
    {
        equal(inline::<u16>(offset).into(), wanted, what)?;
    }
    // CMPXCHG8B, SSE2, no-execute, CMPXCHG16B; not the Alpha's byte instructions.
    let features = [2, 10, 12, 14, 5].map(|number| inline::<u8>(0x274 + number));
    check(features == [1, 1, 1, 1, 0], "processor features", u64::from(features[0]), 0)?;
    let debugged = CommandLine::new(facts().info.command_line).has("debug");
    equal(inline::<u8>(0x2D4).into(), if debugged { 3 } else { 0 }, "debugger enabled")?;
    equal(inline::<u64>(0x300), clock::performance_frequency(), "rate of the performance counter")?;
    let pages: u32 = inline(0x2E8);
    check(pages > 8192, "pages of memory", pages.into(), 0)
}

/// The page is never ahead of the precise times; the performance counter counts the same time; a stall lasts as long as it is told to.
fn queries(_: &mut Irql<Passive>) -> Result {
    // The page's first.
    let interrupt = (clock::interrupt_time(), clock::interrupt_time_precise());
    let system = (clock::system_time(), clock::system_time_precise());
    for (page, precise) in [interrupt, system] {
        check(page <= precise, "the page is ahead of the time", page, precise)?;
    }
    let (counter, time) = (clock::performance_counter, clock::interrupt_time_precise);
    let outside = (counter(), time());
    let inside = (counter(), time());
    for microseconds in [0, 1, 10, 1_000, 20_000] {
        let begun = time();
        clock::stall(microseconds);
        // Both are rounded down.
        check(time() - begun + 1 >= 10 * microseconds, "a stall that was too short", microseconds, begun)?;
    }
    let inside = (counter() - inside.0, time() - inside.1);
    let outside = (counter() - outside.0, time() - outside.1);
    let counted =
        |counts: u64| (u128::from(counts) * 10_000_000 / u128::from(clock::performance_frequency())) as u64;
    // What is counted from an earlier to a later moment is no less.
    check(
        counted(outside.0) + 2 >= inside.1,
        "100 ns by the counter, at most",
        counted(outside.0),
        inside.1,
    )?;
    check(counted(inside.0) <= outside.1 + 2, "100 ns by the counter, at least", counted(inside.0), outside.1)
}

/// What the real-time clock says, in seconds since 1601; nothing if there is none.
fn real_time_clock() -> Option<u64> {
    let register = |number: u8| {
        port_out(0x70, number);
        port_in(0x71)
    };
    let read = || [0, 2, 4, 7, 8, 9].map(register);
    // The same twice, and not while it is updated.
    let values = (0..1_000_000).find_map(|_| {
        let is_updated = register(0xA) & 0x80 != 0;
        let values = read();
        (!is_updated && values == read()).then_some(values)
    })?;
    let status = register(0xB);
    if values == [0xFF; 6] || status & 2 == 0 {
        return None;
    }
    let number =
        |value: u8| u64::from(if status & 4 != 0 { value } else { (value >> 4) * 10 + (value & 0xF) });
    let [second, minute, hour, day, month, year] = values.map(number);
    // Of years that begin with March, leap days come last.
    let years = 2000 - 1601 + year - u64::from(month <= 2);
    let of_the_year = ((month + 9) % 12 * 153 + 2) / 5 + day - 1;
    let days = 59 + years * 365 + (years + 1) / 4 - (years + 1) / 100 + (years + 1) / 400 + of_the_year;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// The loader's reading at the start, and what has passed since; within two minutes, which a busy host may have taken in between.
fn real_time(_: &mut Irql<Passive>) -> Result {
    let Some(seconds) = real_time_clock() else {
        return Err(Verdict::Skip("needs a real-time clock that counts 24 hours"));
    };
    let system = clock::system_time_precise() / 10_000_000;
    check(system.abs_diff(seconds) <= 120, "seconds since 1601, and the clock's", system, seconds)
}

/// On a processor that spins: the page moves on by itself, and the clock is always programmed for the next time in 15.6 ms; and comes
/// then, where the host lets it.
fn kept_up_to_date(at: &mut Irql<Passive>) -> Result {
    const MOST: u64 = 156_000;
    let started = clock::since_start();
    // The first one may have been under way for as long as anybody.
    let (mut updates, mut owned, mut least) = (0, 0, u64::MAX);
    while owned < 5 || least > MOST {
        let lasts = clock::since_start() - started;
        if lasts > 20_000_000 {
            check(owned >= 5, "updates by this processor in 20 seconds", owned, updates)?;
            return Err(Verdict::Skip("needs a host that lets the clock interrupt in time"));
        }
        let before = clock::interrupt_time();
        let begun = clock::since_start();
        while clock::interrupt_time() == before {
            check(clock::since_start() - begun < 2_000_000, "no update for two seconds", before, 0)?;
            arch::cpu::spin_hint();
        }
        let (armed, page) = {
            let mut at = at.raise::<High>();
            (tick::armed_for_update(&mut at), clock::interrupt_time())
        };
        if let Some(armed) = armed {
            check(armed <= page + MOST, "the next update is later than in 15.6 ms", armed, page)?;
            owned += 1;
        }
        if updates > 0 {
            least = least.min(clock::interrupt_time() - before);
        }
        updates += 1;
    }
    Ok(())
}

/// A timer makes another processor the first busy one, hence the clock's owner. It wakes this one and goes idle: the page moves on
/// where somebody is busy.
fn handed_over(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static AWAKE: AtomicU32 = AtomicU32::new(0);
    static WOKEN: Event = Event::new(EventKind::Synchronization, false);
    static WAKE: Dpc = Dpc::new(|_, at, _| {
        AWAKE.store(1, Ordering::Release);
        WOKEN.set(0, at);
    });
    static FIRST: Dpc = Dpc::new(|_, at, _| {
        WAKE.queue([0; 2], at);
        while AWAKE.load(Ordering::Acquire) == 0 {
            arch::cpu::spin_hint();
        }
    });
    static TIMER: Timer = Timer::new(TimerKind::Notification);
    settle(at);
    AWAKE.store(0, Ordering::Relaxed);
    WAKE.set_target(Some(arch::cpu::number()));
    FIRST.set_target(Some(prcb::count() - 1));
    TIMER.set(Due::In(200_000), Options::default(), Some(&FIRST), at);
    let _ = wait::for_single(&WOKEN, None, at);
    kept_up_to_date(at)
}

/// What the PIT's channel 2 counts in 2¹⁶ − 1 of its ticks, counted by the interrupt time: within 0.5 %. The bracket around
/// either end is measured too, so a processor that the host holds up makes it try again, not fail.
fn rate(at: &mut Irql<Passive>) -> Result {
    const PIT_HZ: u64 = 1_193_182;
    const WANTED: u64 = 65_535 * 10_000_000 / PIT_HZ;
    const ALLOWED: u64 = WANTED / 200;
    for _ in 0..40 {
        let _undisturbed = at.raise::<High>();
        let gate = port_in(0x61) & !2 | 1;
        port_out(0x61, gate);
        // Channel 2, both bytes, mode 0; the count starts with the high one.
        port_out(0x43, 0b1011_0000);
        port_out(0x42, 0xFF);
        let start_least = clock::interrupt_time_precise();
        port_out(0x42, 0xFF);
        let start_most = clock::interrupt_time_precise();
        let mut end_least = start_most;
        loop {
            let before = clock::interrupt_time_precise();
            if port_in(0x61) & 1 << 5 != 0 {
                break;
            }
            end_least = before;
            check(end_least - start_most < 100_000_000, "the PIT doesn't count", 0, 0)?;
        }
        let end_most = clock::interrupt_time_precise();
        let (least, most) = (end_least - start_most, end_most - start_least);
        check(least <= WANTED + ALLOWED && most >= WANTED - ALLOWED, "100 ns in 55 ms", least, most)?;
        if most - least < ALLOWED {
            return Ok(());
        }
    }
    Err(Verdict::Skip("needs a host that leaves a processor in peace for 55 ms"))
}

fn port_in(port: u16) -> u8 {
    let value: u8;
    // SAFETY: reading port 0x61 or the real-time clock has no side effect.
    unsafe { core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

fn port_out(port: u16, value: u8) {
    // SAFETY: the PIT's channel 2 and its gate are used by calibration alone, which was before, and of the real-time clock a register is
    //         chosen only.
    unsafe { core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// A timer ends the idle time of all: its DPC must find a page that is as new as the timer's due time. Where the host has kept some
/// processor from going idle, that one owned the clock, and the round shows nothing.
fn fresh_after_idle(at: &mut Irql<Passive>) -> Result {
    static FOUND: AtomicU64 = AtomicU64::new(0);
    static UPDATED: AtomicU64 = AtomicU64::new(0);
    static EXPIRED: Event = Event::new(EventKind::Synchronization, false);
    static DPC: Dpc = Dpc::new(|_, at, _| {
        // In this order: an update may come in between.
        UPDATED.store(tick::updated_at(at).unwrap_or(0), Ordering::Release);
        FOUND.store(clock::interrupt_time(), Ordering::Release);
        EXPIRED.set(0, at);
    });
    static TIMER: Timer = Timer::new(TimerKind::Notification);
    let (mut shown, mut rounds) = (0, 0);
    while shown < 5 {
        rounds += 1;
        check(
            rounds <= 200,
            "rounds until this processor was five times the first to be busy",
            rounds,
            shown,
        )?;
        let due = clock::interrupt_time_precise() + 500_000;
        TIMER.set(Due::In(500_000), Options::default(), Some(&DPC), at);
        let _ = wait::for_single(&EXPIRED, None, at);
        // The clock is this processor's since the timer was due.
        if UPDATED.load(Ordering::Relaxed) >= due {
            let found = FOUND.load(Ordering::Relaxed);
            check(found >= due, "the page is older than the interrupt", found, due)?;
            shown += 1;
        }
    }
    Ok(())
}

/// Interrupts of every vector that a processor took.
fn interrupts(processor: &Processor) -> u64 {
    (0..=255).map(|vector| u64::from(processor.prcb().interrupt_count(vector))).sum()
}

/// Lets what the start and earlier tests have left to be done come to its end, however slow the host: until a tenth of a second has passed
/// in which no processor was interrupted as one is that has work. Five seconds at most: who is never left alone is for the test to find.
pub(crate) fn settle(at: &mut Irql<Passive>) {
    let mut before = [0; prcb::MAX_PROCESSORS];
    for _ in 0..50 {
        let mut is_quiet = true;
        let _ = wait::delay(Due::In(1_000_000), at);
        for (before, processor) in before.iter_mut().zip(prcb::all()) {
            let now = interrupts(processor);
            // On this one, the delay's own end.
            let allowed = if processor.prcb().number() == arch::cpu::number() { 3 } else { 0 };
            is_quiet &= now - *before <= allowed;
            *before = now;
        }
        if is_quiet {
            return;
        }
    }
}

/// Of two processors with a thread each one owns the clock, and the other one is not interrupted for it. Tried until nothing else comes in
/// between; a tick would come every time.
fn busy_interrupts(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static SPINS: AtomicU32 = AtomicU32::new(0);
    const NOBODY: u32 = u32::MAX;
    let owns = |at: &mut Irql<Passive>| tick::updated_at(&mut at.raise::<Dispatch>()).is_some();
    let me = arch::cpu::number();
    let other = (me + 1) % prcb::count();
    let (mut rounds, mut least) = (0, u32::MAX);
    while least > 0 && rounds < 20 {
        rounds += 1;
        // A thread that waits for its turn behind one of the two would bring a tick with each quantum.
        settle(at);
        SPINS.store(other, Ordering::Relaxed);
        everywhere::start(at, |_, number| {
            while SPINS.load(Ordering::Relaxed) == number {
                arch::cpu::spin_hint();
            }
        });
        let owned = owns(at);
        let left_alone = if owned { other } else { me };
        let clocks = || prcb::get(left_alone).map_or(0, |it| it.prcb().interrupt_count(vector::CLOCK));
        let before = clocks();
        clock::stall(300_000);
        let taken = clocks() - before;
        if owns(at) == owned && arch::cpu::number() == me {
            least = least.min(taken);
        }
        SPINS.store(NOBODY, Ordering::Relaxed);
        everywhere::finish(at);
    }
    check(least == 0, "clock interrupts of a thread alone in 300 ms", least.into(), rounds)
}

/// Interrupts of each vector that a processor had taken.
static BEFORE: [[AtomicU32; 256]; prcb::MAX_PROCESSORS] =
    [const { [const { AtomicU32::new(0) }; 256] }; prcb::MAX_PROCESSORS];

/// All idle for `idle_ms=` milliseconds (1000 unless the command line says more): fewer than two interrupts a second each.
fn idle_interrupts(at: &mut Irql<Passive>) -> Result {
    static TIMER: Timer = Timer::new(TimerKind::Notification);
    let milliseconds = match CommandLine::new(facts().info.command_line).number("idle_ms") {
        Some(Ok(milliseconds)) => milliseconds.max(1000),
        _ => 1000,
    };
    settle(at);
    for (slots, processor) in BEFORE.iter().zip(prcb::all()) {
        for (vector, slot) in (0..=255).zip(slots) {
            slot.store(processor.prcb().interrupt_count(vector), Ordering::Relaxed);
        }
    }
    TIMER.set(Due::In(milliseconds * 10_000), Options::default(), None, at);
    let _ = wait::for_single(&TIMER, None, at);
    let allowed = 2 * milliseconds / 1000;
    let mut result = Ok(());
    for (before, processor) in BEFORE.iter().zip(prcb::all()) {
        let number = processor.prcb().number();
        let since = |vector| {
            processor.prcb().interrupt_count(vector) - before[usize::from(vector)].load(Ordering::Relaxed)
        };
        let taken = (0..=255).map(|vector| u64::from(since(vector))).sum();
        let clocks = processor.prcb().interrupt_count(vector::CLOCK);
        kernel::info!(
            "clock: processor {number}: {taken} interrupts in {milliseconds} ms idle; {clocks} clock interrupts so far"
        );
        for vector in (0..=255).filter(|&vector| since(vector) != 0) {
            kernel::info!("clock:   vector {vector:#x}: {}", since(vector));
        }
        // Not idle time, on this processor: the end of the wait; and the clock's update, which may find it on its way into the wait, at
        // DISPATCH, so that the watchdog looks once more.
        let own = if number == arch::cpu::number() { 3 } else { 0 };
        result = result.and(check(taken < allowed + own, "interrupts while idle", taken, number.into()));
    }
    result
}
