//! `KeBugCheckEx`: the one end of every broken invariant.
//!
//! Owns:       [`StopCode`], who reports, the report.
//! IRQL:       any, NMI included. Takes no lock and allocates nothing.
//! Invariants: I1 one report: the first processor to swap its number into `OWNER` writes it; another that fails meanwhile notes its
//!                own code and waits to be frozen.
//!             I2 the others are frozen before the first line, so nothing else writes to the port.
//!             I3 a failure of the reporting processor itself gives a shorter report; a third one ends the run at once.
//! Sources:    WDK, `KeBugCheckEx`, "Bug Check Code Reference".

macro_rules! stop_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// A stop code, by NT's name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum StopCode { $($(#[$doc])* $name = $value,)* }

        impl StopCode {
            /// All of them.
            pub const ALL: &'static [StopCode] = &[$(StopCode::$name,)*];

            /// NT's spelling.
            pub const fn name(self) -> &'static str {
                match self { $(StopCode::$name => $text,)* }
            }
        }

        /// The name of a numeric stop code, where it has one.
        pub const fn name_of(code: u32) -> &'static str {
            match code { $($value => $text,)* _ => "UNKNOWN_STOP_CODE" }
        }
    };
}

stop_codes! {
    /// An APC's routine that returned in another region than it was called in: its address, regions before and after, 5.
    ApcIndexMismatch = 0x01, "APC_INDEX_MISMATCH";
    /// A raise to a lower level: levels in parameters 1 and 2.
    IrqlNotGreaterOrEqual = 0x09, "IRQL_NOT_GREATER_OR_EQUAL";
    /// A fault at or above DISPATCH (address, IRQL, 0 read / 1 write / 8 execute, RIP), or a lower to a higher level.
    IrqlNotLessOrEqual = 0x0A, "IRQL_NOT_LESS_OR_EQUAL";
    /// More wait objects than allowed.
    MaximumWaitObjectsExceeded = 0x0C, "MAXIMUM_WAIT_OBJECTS_EXCEEDED";
    /// A spin lock taken twice by one processor.
    SpinLockAlreadyOwned = 0x0F, "SPIN_LOCK_ALREADY_OWNED";
    /// A spin lock released that nobody held.
    SpinLockNotOwned = 0x10, "SPIN_LOCK_NOT_OWNED";
    /// A mutex released by a thread that doesn't hold it: mutex, owner, place.
    ThreadNotMutexOwner = 0x11, "THREAD_NOT_MUTEX_OWNER";
    /// A vector without a handler: the vector.
    TrapCauseUnknown = 0x12, "TRAP_CAUSE_UNKNOWN";
    /// Damage in a pool block.
    BadPoolHeader = 0x19, "BAD_POOL_HEADER";
    /// Page tables or the PFN database contradict themselves.
    MemoryManagement = 0x1A, "MEMORY_MANAGEMENT";
    /// An exception without a handler: NTSTATUS, RIP, error code, vector. A panic: 0xE0000001, location.
    KmodeExceptionNotHandled = 0x1E, "KMODE_EXCEPTION_NOT_HANDLED";
    /// A thread that ends in a critical or guarded region: the thread, the regions, its routine.
    KernelApcPendingDuringExit = 0x20, "KERNEL_APC_PENDING_DURING_EXIT";
    /// An IRP out of stack locations.
    NoMoreIrpStackLocations = 0x35, "NO_MORE_IRP_STACK_LOCATIONS";
    /// An IRP completed twice.
    MultipleIrpCompleteRequests = 0x44, "MULTIPLE_IRP_COMPLETE_REQUESTS";
    /// IRQL above PASSIVE at the end of a system service.
    IrqlGtZeroAtSystemService = 0x4A, "IRQL_GT_ZERO_AT_SYSTEM_SERVICE";
    /// A page's state and what is done with it contradict each other: page number, status word, counts, owner.
    PfnListCorrupt = 0x4E, "PFN_LIST_CORRUPT";
    /// A fault on an address that is never paged: address, 0 read / 1 write / 8 execute, RIP.
    PageFaultInNonpagedArea = 0x50, "PAGE_FAULT_IN_NONPAGED_AREA";
    /// A page could not be read in: its slot, NTSTATUS, 0, the address.
    KernelDataInpageError = 0x7A, "KERNEL_DATA_INPAGE_ERROR";
    /// An exception in a system thread.
    SystemThreadExceptionNotHandled = 0x7E, "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED";
    /// A trap that has no handler by design: vector (8: double fault, so a stack overflow).
    UnexpectedKernelModeTrap = 0x7F, "UNEXPECTED_KERNEL_MODE_TRAP";
    /// An NMI that nobody sent, or one inside another.
    NmiHardwareFailure = 0x80, "NMI_HARDWARE_FAILURE";
    /// #MC.
    MachineCheckException = 0x9C, "MACHINE_CHECK_EXCEPTION";
    /// A context switch at or above DISPATCH; parameter 4 = 1: work of DISPATCH with a
    /// vector (parameter 1) in service; 2: a wait in a threaded DPC; 3: a switch at
    /// level (parameter 1), with IF (2), with a vector in service (3, plus one).
    AttemptedSwitchFromDpc = 0xB8, "ATTEMPTED_SWITCH_FROM_DPC";
    /// A write to read-only memory: address, error code, RIP.
    AttemptedWriteToReadonlyMemory = 0xBE, "ATTEMPTED_WRITE_TO_READONLY_MEMORY";
    /// A mutex acquired again by its owner: mutex, owner, place.
    MutexAlreadyOwned = 0xBF, "MUTEX_ALREADY_OWNED";
    /// Misuse of the pool.
    BadPoolCaller = 0xC2, "BAD_POOL_CALLER";
    /// The checked build found what would deadlock (0x1001): the lock, the acquire, the one that made another order; a thread in two
    /// places (0x2001 to 0x2004): the thread, and what says `sched::verify`; a wait that nobody ended (0x2005): the thread, the object.
    DriverVerifierDetectedViolation = 0xC4, "DRIVER_VERIFIER_DETECTED_VIOLATION";
    /// A routine that returned at another level: level found, level expected, its address, its kind ([`RoutineKind`]; else
    /// parameter 3 is the place in the source that found it).
    IrqlUnexpectedValue = 0xC8, "IRQL_UNEXPECTED_VALUE";
    /// The checked build found a driver that breaks a rule of packets: which (`io::verify`), its routine, the packet, a status.
    DriverVerifierIomanagerViolation = 0xC9, "DRIVER_VERIFIER_IOMANAGER_VIOLATION";
    /// A fault at or above DISPATCH in a driver.
    DriverIrqlNotLessOrEqual = 0xD1, "DRIVER_IRQL_NOT_LESS_OR_EQUAL";
    /// Asked for.
    ManuallyInitiatedCrash = 0xE2, "MANUALLY_INITIATED_CRASH";
    /// A resource released, or converted, by a thread that doesn't own it so: resource, thread.
    ResourceNotOwned = 0xE3, "RESOURCE_NOT_OWNED";
    /// An interrupt that can't be quieted: vector, passes over its chain.
    HardwareInterruptStorm = 0xF2, "HARDWARE_INTERRUPT_STORM";
    /// Execution of no-execute memory: address, error code, RIP.
    AttemptedExecuteOfNoexecuteMemory = 0xFC, "ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY";
    /// Too long at DISPATCH: 0 one DPC, 1 all of a stay; milliseconds, limit, the address of the DPC's routine.
    DpcWatchdogViolation = 0x133, "DPC_WATCHDOG_VIOLATION";
}

/// What a routine was that returned at another level, for IRQL_UNEXPECTED_VALUE's fourth parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum RoutineKind {
    /// An ordinary DPC.
    Dpc = 1,
    /// A threaded DPC.
    ThreadedDpc = 2,
    /// An interrupt service routine.
    Isr = 3,
    /// A thread's.
    Thread = 4,
    /// An APC's.
    Apc = 5,
    /// A work item's.
    WorkItem = 6,
    /// A driver's, for a packet.
    DriverDispatch = 7,
    /// A callback's.
    Callback = 8,
}

#[cfg(target_os = "none")]
pub(crate) use report::place;
#[cfg(target_os = "none")]
pub use report::{bugcheck, is_under_way, raw, register_callback, with_frame};

/// The same on a host: a panic, which `arch::stop::catch` tells.
#[cfg(not(target_os = "none"))]
#[track_caller]
pub(in crate::ke) fn bugcheck(code: StopCode, parameters: [u64; 4]) -> ! {
    arch::fatal(code as u32, parameters)
}

#[cfg(target_os = "none")]
mod report {
    use core::fmt::{self, Write};
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use arch::exit::Outcome;
    use arch::trace::{Kind, event};
    use arch::trap::TrapFrame;

    use super::super::{backtrace, clock, freeze, prcb, trap};
    use super::{StopCode, name_of};

    const NOBODY: u32 = u32::MAX;

    /// The reporting processor (I1).
    static OWNER: AtomicU32 = AtomicU32::new(NOBODY);
    /// Failures of the reporting processor, the first included (I3).
    static FAILURES: AtomicU32 = AtomicU32::new(0);

    /// What a driver or a self-test wants done at the end of the report; zero: nothing.
    static CALLBACK: AtomicUsize = AtomicUsize::new(0);

    /// Runs `callback` at the end of the report, at HIGH, the other processors frozen. One at a time; returns whether none was
    /// registered before.
    #[doc(alias = "KeRegisterBugCheckCallback")]
    pub fn register_callback(callback: fn()) -> bool {
        CALLBACK.compare_exchange(0, callback as usize, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn run_callback() {
        let address = CALLBACK.load(Ordering::Acquire);
        if address != 0 {
            // SAFETY: only `register_callback` stores here, and only a `fn()`.
            let callback = unsafe { core::mem::transmute::<usize, fn()>(address) };
            callback();
        }
    }

    /// Whether a report has begun: an NMI then means "freeze".
    pub fn is_under_way() -> bool {
        OWNER.load(Ordering::SeqCst) != NOBODY
    }

    /// Ends the run with `code` and four parameters.
    #[doc(alias = "KeBugCheckEx")]
    #[cold]
    pub fn bugcheck(code: StopCode, parameters: [u64; 4]) -> ! {
        raw(code as u32, parameters)
    }

    /// The same for a numeric code: `arch`'s and `sync`'s way in.
    #[cold]
    #[inline(never)]
    pub fn raw(code: u32, parameters: [u64; 4]) -> ! {
        stop(code, parameters, None)
    }

    /// What a parameter of the next bugcheck means, where that is a place in the source: a line of the log, as the report that
    /// comes after may be another processor's.
    pub(crate) fn place(number: u32, place: &'static core::panic::Location<'static>) {
        crate::error!("bugcheck parameter {number}: {}:{}", place.file(), place.line());
    }

    /// The same for an exception: the report shows its registers.
    #[cold]
    pub fn with_frame(code: StopCode, parameters: [u64; 4], frame: &TrapFrame) -> ! {
        stop(code as u32, parameters, Some(frame))
    }

    fn stop(code: u32, parameters: [u64; 4], frame: Option<&TrapFrame>) -> ! {
        let irql = frame.map_or_else(arch::irql::current, |frame| frame.irql as u8);
        // SAFETY: this context ends here; nothing of it needs IF or its level again.
        unsafe {
            arch::cpu::cli();
            arch::irql::set(arch::level::HIGH);
        }
        event(Kind::Bugcheck, 0, code.into(), parameters[0]);
        #[cfg(feature = "verifier")]
        arch::debugger::stops_here();
        let me = if arch::pcr::installed() { arch::pcr::number() } else { 0 };
        match OWNER.compare_exchange(NOBODY, me, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {}
            Err(owner) if owner == me => {}
            Err(_) => wait_to_be_frozen(code),
        }
        match FAILURES.fetch_add(1, Ordering::SeqCst) {
            0 => full(me, code, parameters, irql, frame),
            1 => short(code, parameters, frame),
            _ => {}
        }
        arch::exit::leave(Outcome::Bugcheck)
    }

    /// Another processor reports (I1). Its NMI finds this one here.
    fn wait_to_be_frozen(code: u32) -> ! {
        if let Some(processor) = prcb::get(arch::pcr::number()) {
            processor.prcb().also_failed.store(u64::from(code) + 1, Ordering::Release);
        }
        arch::cpu::halt_forever()
    }

    /// The port, to this processor alone (I2).
    struct Port;

    impl Write for Port {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            // SAFETY: the others are frozen, or refused to be; then mixed output is better than none.
            unsafe { arch::serial::write(text.as_bytes()) };
            Ok(())
        }
    }

    fn full(me: u32, code: u32, parameters: [u64; 4], irql: u8, frame: Option<&TrapFrame>) {
        let at_large = freeze::all_others();
        crate::kd::log::take_over();
        // A formatting error can't happen: `Port` has none.
        let _ = describe(me, code, parameters, irql, frame, at_large);
        // The report is whole before anything foreign runs.
        let _ = writeln!(Port, "*** end of report");
        run_callback();
    }

    fn headline(code: u32, [a, b, c, d]: [u64; 4]) -> fmt::Result {
        let name = name_of(code);
        writeln!(Port, "*** STOP 0x{code:08X} {name} (0x{a:016X}, 0x{b:016X}, 0x{c:016X}, 0x{d:016X})")
    }

    fn describe(
        me: u32,
        code: u32,
        parameters: [u64; 4],
        irql: u8,
        frame: Option<&TrapFrame>,
        at_large: u32,
    ) -> fmt::Result {
        headline(code, parameters)?;
        let micro = clock::since_start();
        let here = prcb::get(me);
        let thread = here.map_or(0, |processor| processor.prcb().current_thread());
        writeln!(
            Port,
            "    at {}.{:06} s, processor {me}, irql {irql}, thread 0x{thread:016x}",
            micro / 1_000_000,
            micro % 1_000_000
        )?;
        if let Some((processor, kind)) = frame.and_then(trap::overflown_stack) {
            writeln!(Port, "    the {kind:?} stack of processor {processor} ran over")?;
        }
        if let Some(thread) = frame.and_then(trap::overflown_thread) {
            writeln!(
                Port,
                "    the stack of thread {} ({}) ran over",
                thread.number(),
                thread.name().as_str()
            )?;
        }
        if at_large != 0 {
            writeln!(Port, "    {at_large} processors did not stop")?;
        }
        writeln!(Port, "cpu {me}: reporting")?;
        match frame {
            Some(frame) => dump(frame)?,
            None => {
                let (rip, rsp, rbp) = here_registers();
                writeln!(Port, "    rsp {rsp:016x} rbp {rbp:016x}")?;
                trace(rip, rbp)?;
            }
        }
        for other in prcb::all().filter(|other| other.prcb().number() != me) {
            let number = other.prcb().number();
            match (freeze::frame_of(other), other.prcb().also_failed.load(Ordering::Acquire)) {
                (Some(frame), 0) => {
                    writeln!(Port, "cpu {number}: frozen at irql {}", frame.irql)?;
                    dump(frame)?;
                }
                (Some(frame), failed) => {
                    let name = name_of(failed as u32 - 1);
                    writeln!(Port, "cpu {number}: failed as well, with 0x{:08X} {name}", failed - 1)?;
                    dump(frame)?;
                }
                (None, _) => writeln!(Port, "cpu {number}: {:?}, not frozen", other.prcb().state())?,
            }
        }
        Ok(())
    }

    /// The report itself failed: what is certain, in two lines.
    fn short(code: u32, parameters: [u64; 4], frame: Option<&TrapFrame>) {
        let _ = writeln!(Port, "\n*** failed again while reporting:");
        let _ = headline(code, parameters).and_then(|()| match frame {
            Some(frame) => writeln!(Port, "  #0 {:#018x}", frame.rip),
            None => Ok(()),
        });
    }

    #[inline(always)]
    fn here_registers() -> (u64, u64, u64) {
        let (rip, rsp, rbp): (u64, u64, u64);
        // SAFETY: reads three registers.
        unsafe {
            core::arch::asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) rip, out(reg) rsp, out(reg) rbp, options(nomem, nostack, preserves_flags));
        }
        (rip, rsp, rbp)
    }

    fn dump(frame: &TrapFrame) -> fmt::Result {
        let f = frame;
        writeln!(
            Port,
            "    vector {} error {:#x} cr2 {:016x} rflags {:08x} cs {:x} ss {:x}",
            f.vector as u8, f.error, f.cr2, f.rflags, f.cs, f.ss
        )?;
        writeln!(Port, "    rip {:016x} rsp {:016x} rbp {:016x} rax {:016x}", f.rip, f.rsp, f.rbp, f.rax)?;
        writeln!(Port, "    rbx {:016x} rcx {:016x} rdx {:016x} rsi {:016x}", f.rbx, f.rcx, f.rdx, f.rsi)?;
        writeln!(Port, "    rdi {:016x} r8  {:016x} r9  {:016x} r10 {:016x}", f.rdi, f.r8, f.r9, f.r10)?;
        writeln!(
            Port,
            "    r11 {:016x} r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}",
            f.r11, f.r12, f.r13, f.r14, f.r15
        )?;
        trace(f.rip, f.rbp)
    }

    fn trace(rip: u64, rbp: u64) -> fmt::Result {
        let mut result = Ok(());
        backtrace::walk(rip, rbp, |number, address| {
            result = result.and(writeln!(Port, "  #{number} {address:#018x}"));
        });
        result
    }

    /// A Rust panic is an unhandled exception: its text, then the same report.
    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        /// What `RtlRaiseException` would be given for it: a customer-defined, severity-error status.
        const STATUS_RUST_PANIC: u64 = 0xE000_0001;
        // Through the log: one line, not mixed with others', even before the freeze. Inside a report, straight to the port.
        if is_under_way() {
            let _ = writeln!(Port, "\npanic: {}", info.message());
        } else {
            crate::error!("panic: {}", info.message());
        }
        let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
        if !is_under_way() {
            crate::error!("panic: at {file}:{line}");
        }
        let (file, line) = (file.as_ptr() as u64, u64::from(line));
        stop(StopCode::KmodeExceptionNotHandled as u32, [STATUS_RUST_PANIC, file, line, 0], None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_and_are_unique() {
        for (at, &code) in StopCode::ALL.iter().enumerate() {
            assert_eq!(name_of(code as u32), code.name());
            assert!(
                StopCode::ALL[..at]
                    .iter()
                    .all(|&other| other as u32 != code as u32 && other.name() != code.name())
            );
        }
        assert_eq!(name_of(0xDEAD), "UNKNOWN_STOP_CODE");
    }
}
