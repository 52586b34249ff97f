//! The ladder: every level and every lock rank, from one list, in order.
//!
//! A lock rank *is* a level: code that holds a lock of rank R has a token for R, and only what is strictly above R can be
//! taken with it. So a new lock gets its place by one line in the list at the end of this file, and taking locks in
//! another order does not compile. Ranks in the `dispatch` section are held at CR8 = 2; code that a device, clock or
//! inter-processor interrupt runs starts above them, and can take the ranks in the `interrupts` section alone.
//!
//! Invariants: I1 CR8 never falls from one entry of the list to the next (the run-time entries by their lower bound).
//!             I2 `L: Below<H>` exactly if L stands before H in the list; `AtOrBelow` adds L = H.
//! Tests:      tests/props/tests/ladder.rs (I1, I2); tests/refuse (what does not compile).

mod sealed {
    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot be made an IRQL or a lock rank",
        label = "not an entry of the ladder in sync/src/rank.rs",
        note = "the ladder is closed; a new lock's rank is one line of the list in sync/src/rank.rs, in the place where it is taken"
    )]
    pub trait Sealed {}
}

/// A place in the ladder. Sealed: a foreign level of value 0 "above" DISPATCH would lower inside a DPC.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an IRQL or a lock rank",
    label = "not an entry of the ladder in sync/src/rank.rs",
    note = "use one of the list in sync/src/rank.rs; no other crate can add one"
)]
pub trait Level: sealed::Sealed + 'static {
    /// NT's name, for reports.
    const NAME: &'static str;
    /// The lowest CR8 value at which a token of this level may be used.
    const LOWEST: u8;
    /// The highest. Differs from [`LOWEST`](Self::LOWEST) where the level is known at run time only.
    const HIGHEST: u8;
    /// Where in the list this entry stands, from 0.
    const POSITION: usize;
}

/// A level with one CR8 value, known at compile time: all but `Device` and `Nmi`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no CR8 value that is known at compile time",
    label = "the target of `raise` has one",
    note = "for a device level: raise with `raise_device(level)`, and put data shared with an ISR behind an `InterruptLock`"
)]
pub trait Fixed: Level {
    /// The IRQL that code of this level or rank runs at.
    const CR8: u8 = Self::LOWEST;
}

/// What a spin lock may have for its rank: one CR8 value, DISPATCH or above. Below that its holder could wait, and move to another
/// processor, while others spin.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a lock's rank",
    label = "a rank has one CR8 value, known at compile time, which is DISPATCH or above",
    note = "choose a rank of the list in sync/src/rank.rs; data shared with an ISR goes behind an `InterruptLock`",
    note = "for threads that may wait while they hold it: a fast mutex, a push lock or a resource of the executive"
)]
pub trait Rank: Fixed + AtLeastDispatch {}

/// Strictly below `H` in the ladder: what taking a lock of rank `H` requires of the token it is taken with.
#[diagnostic::on_unimplemented(
    message = "a lock of rank `{H}` cannot be taken at `{Self}`",
    label = "`{H}` is not above `{Self}` in the ladder",
    note = "locks are taken upwards in the list in sync/src/rank.rs, each rank once; several of one rank at once: `LockSet`",
    note = "if a guard gave you `Irql<{Self}>`: take this lock before that one, or release that one first",
    note = "an ISR leaves such work to a DPC; an NMI handler takes no lock at all"
)]
pub trait Below<H: Level>: AtOrBelow<H> {}

/// At or below `H` in the ladder: what a raise to `H` requires of the token it starts from.
#[diagnostic::on_unimplemented(
    message = "the IRQL cannot be raised from `{Self}` to `{H}`",
    label = "`{H}` is not at or above `{Self}` in the ladder",
    note = "to lower, drop the guard or `Raised` that gave you `Irql<{Self}>`",
    note = "code that was entered at `{Self}` leaves work for a lower level to a DPC or a work item"
)]
pub trait AtOrBelow<H: Level>: Level {}

/// PASSIVE and APC: code that may wait, touch paged memory and be switched away from.
#[diagnostic::on_unimplemented(
    message = "code at `{Self}` must not wait, switch threads or touch paged memory",
    label = "needs PASSIVE or APC, this is `{Self}`",
    note = "if a guard or `Raised` gave you `Irql<{Self}>`: drop it first; copy what you need of paged data before you raise",
    note = "an ISR leaves such work to a DPC, a DPC to a work item, which runs at PASSIVE"
)]
pub trait MayBlock: Level {}

/// DISPATCH and above: the thread stays on this processor for as long as the token is used.
#[diagnostic::on_unimplemented(
    message = "at `{Self}` the thread may move to another processor at any time",
    label = "needs DISPATCH or above, this is `{Self}`",
    note = "raise first, and drop what you got before you lower: `let mut at = at.raise::<Dispatch>();`"
)]
pub trait AtLeastDispatch: Level {}

macro_rules! level {
    ($(#[$doc:meta])* $name:ident, $text:literal, $lowest:literal ..= $highest:literal, [$($mark:ident)*]) => {
        $(#[$doc])*
        pub enum $name {}

        impl sealed::Sealed for $name {}
        impl Level for $name {
            const NAME: &'static str = $text;
            const LOWEST: u8 = $lowest;
            const HIGHEST: u8 = $highest;
            const POSITION: usize = Position::$name as usize;
        }
        $(impl $mark for $name {})*
    };
}

/// All pairs of the list, head against tail and then the tail alike: about N²/2 one-line impls, so that a wrong order is a
/// trait error with a message and not a failed constant deep in an instantiation.
macro_rules! order {
    () => {};
    ($low:ident $($high:ident)*) => {
        impl AtOrBelow<$low> for $low {}
        $(
            impl AtOrBelow<$high> for $low {}
            impl Below<$high> for $low {}
        )*
        order!($($high)*);
    };
}

macro_rules! ladder {
    (
        threads { $($(#[$td:meta])* $thread:ident $tt:literal = $tv:literal;)* }
        dispatch { $($(#[$dd:meta])* $dispatch:ident $dt:literal = $dv:literal;)* }
        run_time { $($(#[$rd:meta])* $device:ident $rt:literal = $rl:literal ..= $rh:literal;)* }
        interrupts { $($(#[$id:meta])* $interrupt:ident $it:literal = $iv:literal;)* }
        unmaskable { $($(#[$nd:meta])* $nmi:ident $nt:literal = $nl:literal ..= $nh:literal;)* }
    ) => {
        #[allow(dead_code, reason = "its variants are numbered, not made")]
        enum Position { $($thread,)* $($dispatch,)* $($device,)* $($interrupt,)* $($nmi,)* }

        $(level!($(#[$td])* $thread, $tt, $tv..=$tv, [Fixed MayBlock]);)*
        $(level!($(#[$dd])* $dispatch, $dt, $dv..=$dv, [Fixed Rank AtLeastDispatch]);)*
        $(level!($(#[$rd])* $device, $rt, $rl..=$rh, [AtLeastDispatch]);)*
        $(level!($(#[$id])* $interrupt, $it, $iv..=$iv, [Fixed Rank AtLeastDispatch]);)*
        $(level!($(#[$nd])* $nmi, $nt, $nl..=$nh, [AtLeastDispatch]);)*
        order!($($thread)* $($dispatch)* $($device)* $($interrupt)* $($nmi)*);

        /// The ladder as data: name, lowest and highest CR8 value of each entry, in order.
        pub const LADDER: &[(&str, u8, u8)] = &[
            $(($tt, $tv, $tv),)* $(($dt, $dv, $dv),)* $(($rt, $rl, $rh),)* $(($it, $iv, $iv),)* $(($nt, $nl, $nh),)*
        ];
    };
}

ladder! {
    threads {
        /// Threads.
        Passive "PASSIVE" = 0;
        /// Kernel APCs, holders of fast mutexes.
        Apc "APC" = 1;
    }
    dispatch {
        /// DPCs and the scheduler; the level of a processor that holds any spin lock of this section.
        Dispatch "DISPATCH" = 2;
        /// Rank: a dispatcher object's own lock; an entry of a handle table, and its free list. Never two of these.
        ObjectLock "ObjectLock" = 2;
        /// Rank: one processor's timer table.
        TimerTableLock "TimerTableLock" = 2;
        /// Rank: a thread's own lock.
        ThreadLock "ThreadLock" = 2;
        /// Rank: a processor's ready queues.
        PrcbLock "PrcbLock" = 2;
        /// Rank: an address space's descriptors and user half.
        AddressSpaceLock "AddressSpaceLock" = 2;
        /// Rank: the pages of a section.
        SectionLock "SectionLock" = 2;
        /// Rank: the right to this processor's pool lists. Above the locks that are held while something is allocated.
        PoolAccess "PoolAccess" = 2;
        /// Rank: the pool's shared lists.
        PoolLock "PoolLock" = 2;
        /// Rank: system page-table entries and the kernel's page tables.
        SpaceLock "SpaceLock" = 2;
        /// Rank: the right to this processor's page cache.
        PageCacheAccess "PageCacheAccess" = 2;
        /// Rank: the PFN database.
        PfnLock "PfnLock" = 2;
    }
    run_time {
        /// ISRs: a level from 3 to 11, known at run time. The type says "at least 3"; raises between device levels
        /// are checked at run time.
        Device "DEVICE" = 3..=11;
    }
    interrupts {
        /// Above every device: synchronisation with all of them.
        Synch "SYNCH" = 12;
        /// The clock interrupt.
        Clock "CLOCK" = 13;
        /// Inter-processor interrupts.
        Ipi "IPI" = 14;
        /// Everything maskable is masked.
        High "HIGH" = 15;
        /// Rank: a processor's DPC queue. At HIGH, so that an ISR of any level can queue without meeting its own processor.
        DpcQueueLock "DpcQueueLock" = 15;
        /// Rank: queued inter-processor requests.
        IpiQueueLock "IpiQueueLock" = 15;
        /// Rank: the times of the shared page, which two processors may want to write at once.
        SharedTimeLock "SharedTimeLock" = 15;
        /// Rank: the log, last so that anything can be logged under any lock.
        LogLock "LogLock" = 15;
    }
    unmaskable {
        /// NMI and machine check: they arrive at any CR8 value, and nothing is above them, so that their code can neither
        /// take a lock nor raise. They stay on their processor.
        Nmi "NMI" = 0..=15;
    }
}
