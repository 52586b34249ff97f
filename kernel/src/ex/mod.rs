//! The executive's locks, the protocols of `sync` on this kernel's waits; its worker threads; callback objects and UUIDs.
//!
//! | here | NT's | held at | for |
//! |---|---|---|---|
//! | [`FastMutex`] | FAST_MUTEX | APC | one holder, who may wait |
//! | [`GuardedMutex`] | KGUARDED_MUTEX | as its caller is, without APCs | the same |
//! | [`PushLock`] | EX_PUSH_LOCK | APC | the same, shared too, in one word |
//! | [`Resource`] | ERESOURCE | as its caller is | shared and exclusive, taken again by its owners |
//! | [`Rundown`] | EX_RUNDOWN_REF | up to DISPATCH | uses that somebody waits for the end of |
//! | [`SList`](sync::slist::Header), [`Lookaside`](lookaside::Lookaside) | SLIST_HEADER, LOOKASIDE_LIST_EX | any; up to DISPATCH | memory of one size, at hand |
//! | [`WorkItem`](work::WorkItem) | WORK_QUEUE_ITEM | queued up to DISPATCH | work that is done at PASSIVE, by a system thread |
//!
//! Owns:       their sleep ([`Wakeup`]), their memory. Not: how they work (sync/src/event.rs and the files that it names).
//! Not as NT:  a fast mutex and a push lock raise to APC both; no critical region is entered for them.
//! Tests:      the protocols' own models; selftest `ex::*`, on this kernel's waits.

pub mod callback;
pub mod guarded_mutex;
pub mod lookaside;
mod tables;
pub mod uuid;
mod wakeup;
pub mod work;

pub use callback::Callback;
pub use guarded_mutex::GuardedMutex;
pub use tables::PoolTables;
pub use wakeup::Wakeup;

/// See [`sync::fast_mutex`].
#[doc(alias = "FAST_MUTEX")]
pub type FastMutex<T> = sync::FastMutex<T, Wakeup>;

/// See [`sync::push_lock`].
#[doc(alias = "EX_PUSH_LOCK")]
pub type PushLock<T> = sync::PushLock<T, Wakeup>;

/// See [`sync::rundown`].
#[doc(alias = "EX_RUNDOWN_REF")]
pub type Rundown = sync::rundown::Rundown<Wakeup>;

/// See [`sync::resource`].
#[doc(alias = "ERESOURCE")]
pub type Resource = sync::resource::Resource<Wakeup, PoolTables>;

/// A free mutex around `value`.
#[doc(alias = "ExInitializeFastMutex")]
pub const fn fast_mutex<T>(value: T) -> FastMutex<T> {
    FastMutex::new(value, Wakeup::new())
}

const _: () = {
    use sync::fast_mutex::RawFastMutex;
    assert!(size_of::<RawFastMutex<Wakeup>>() == 56, "FAST_MUTEX, KGUARDED_MUTEX");
    assert!(size_of::<Resource>() == 104, "ERESOURCE");
    assert!(size_of::<Rundown>() == 8, "EX_RUNDOWN_REF");
    assert!(size_of::<sync::push_lock::RawPushLock<Wakeup>>() == 8, "EX_PUSH_LOCK");
};
