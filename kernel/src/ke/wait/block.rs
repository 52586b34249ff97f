//! NT's KWAIT_BLOCK: that a thread waits for an object, in the object's list.
//!
//! Everything in a block but `object`, `thread`, `key` and `kind`, which its thread sets before it registers it, is accessed under the
//! object's lock.
//!
//! Sources: WDK `wdm.h`, KWAIT_BLOCK.

use core::ptr;

use super::super::object::Header;
use super::super::thread::Thread;

/// What a wait is for. NT's WAIT_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WaitType {
    /// All of its objects.
    All = 0,
    /// Any of them.
    Any = 1,
}

/// See the module.
#[repr(C)]
pub struct WaitBlock {
    next: *mut WaitBlock,
    previous: *mut WaitBlock,
    kind: WaitType,
    linked: bool,
    /// The status of a wait that this object ends: its index, or STATUS_TIMEOUT's low half for a thread's own timer.
    key: u16,
    /// The next signaller's note: see `signal`.
    _spare: u32,
    thread: *const Thread,
    object: *const Header,
    _spare_pointer: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<WaitBlock>() == 48);
    assert!(offset_of!(WaitBlock, kind) == 16 && offset_of!(WaitBlock, key) == 18);
    assert!(offset_of!(WaitBlock, thread) == 24 && offset_of!(WaitBlock, object) == 32);
};

sync::nt_layout! {
    [] WaitBlock = "KWAIT_BLOCK" {
        next => "WaitListEntry.Flink", previous => "WaitListEntry.Blink", kind => "WaitType", linked => "BlockState",
        key => "WaitKey", _spare => "SpareLong", thread => "Thread", object => "Object", _spare_pointer => "SparePtr",
    }
}

impl WaitBlock {
    /// Registered nowhere.
    pub const fn new() -> Self {
        Self {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            kind: WaitType::Any,
            linked: false,
            key: 0,
            _spare: 0,
            thread: ptr::null(),
            object: ptr::null(),
            _spare_pointer: 0,
        }
    }
}

impl WaitBlock {
    /// For a wait of `thread` for `object`, not registered yet.
    #[inline(always)]
    pub(super) fn prepare(&mut self, kind: WaitType, key: u16, thread: *const Thread, object: *const Header) {
        self.kind = kind;
        self.key = key;
        self.thread = thread;
        self.object = object;
    }

    #[inline(always)]
    pub(super) fn kind(&self) -> WaitType {
        self.kind
    }

    #[inline(always)]
    pub(super) fn key(&self) -> u16 {
        self.key
    }

    #[inline(always)]
    pub(in super::super) fn thread(&self) -> *const Thread {
        self.thread
    }

    #[inline(always)]
    pub(super) fn object(&self) -> *const Header {
        self.object
    }

    #[inline(always)]
    pub(super) fn next(&self) -> *mut WaitBlock {
        self.next
    }

    #[inline(always)]
    pub(in super::super) fn previous(&self) -> *mut WaitBlock {
        self.previous
    }

    #[inline(always)]
    pub(in super::super) fn is_linked(&self) -> bool {
        self.linked
    }

    /// Between `previous` and nothing.
    #[inline(always)]
    pub(in super::super) fn link_behind(&mut self, previous: *mut WaitBlock) {
        self.next = ptr::null_mut();
        self.previous = previous;
        self.linked = true;
    }

    /// What it was between.
    #[inline(always)]
    pub(in super::super) fn unlink(&mut self) -> (*mut WaitBlock, *mut WaitBlock) {
        self.linked = false;
        (self.previous, self.next)
    }

    #[inline(always)]
    pub(in super::super) fn set_next(&mut self, next: *mut WaitBlock) {
        self.next = next;
    }

    #[inline(always)]
    pub(in super::super) fn set_previous(&mut self, previous: *mut WaitBlock) {
        self.previous = previous;
    }
}

impl Default for WaitBlock {
    fn default() -> Self {
        Self::new()
    }
}
