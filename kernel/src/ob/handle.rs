//! Handles: what code without pointers knows objects by, with the rights that it has.
//!
//! | bits of a handle | |
//! |---|---|
//! | 0–1 | ignored: the caller's |
//! | 2–30 | name in the table |
//! | 31–63 | all set: in the kernel's table; all clear: in the process's |
//!
//! Owns:       [`HandleTable`], [`Handle`], [`Caller`]. Not: the table's protocol (sync::handles).
//! IRQL:       references by handle up to DISPATCH; what makes or closes one at PASSIVE, since it may call a close or a delete procedure.
//! Invariants: T1 an entry's object is a header of `ob`, with a reference for it and for each credit (sync::handles, H1), and is one of the
//!                handles that the header counts.
//!             T2 an entry is taken before anything is changed that would have to be undone: what fails keeps nothing.
//! Not as NT:  a handle has some bits of a sequence, so a stale one is STATUS_INVALID_HANDLE and not whatever took its place; upper bits that
//!             are neither all set nor all clear are, too. Whoever opens an object by its name while its last handle is closed may
//!             get a handle to an object that has lost its name. Who opens by a path is not asked in its name yet: by a
//!             reference ([`HandleTable::open_for`]) alone. There is no open procedure.
//! Tests:      tests/models/tests/handles.rs; tests/props/tests/ob_handles.rs; selftest `ob_handles::*`.
//! Sources:    WDK, "Object Handles", `ObReferenceObjectByHandle`, `ObOpenObjectByPointer`, `ZwClose`, `ZwDuplicateObject`, OBJECT_ATTRIBUTES.

use core::any::Any;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use sync::handles::{Blocks, Branch, Closed, Counted, Growth, Leaf, Name, NotClosed, Table, Vacant};
use sync::irql::{Below, Irql, ObjectLock, Passive};

use super::access::AccessMask;
use super::directory;
use super::header::Header;
use super::machine;
use super::namespace::{Namespace, Path, Permanence};
use super::reference::{ObRef, Object};
use super::types::{Body, Type};
use crate::ke::apc::ProcessorMode;
use crate::mm::pool::Tag;
use crate::rtl::NtStatus;
use crate::se::token::Subject;

/// Of a table's blocks.
const TAG: Tag = Tag::new(b"Obtb");

/// NT's HANDLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[doc(alias = "HANDLE")]
pub struct Handle(pub u64);

impl Handle {
    const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;
    const TAG_BITS: u32 = 2;

    fn new(name: Name, is_kernel: bool) -> Self {
        let value = u64::from(name.bits()) << Self::TAG_BITS;
        Self(if is_kernel { value | Self::KERNEL } else { value })
    }

    /// Is it one of the kernel's table, if it is any?
    #[inline(always)]
    pub const fn is_kernel(self) -> bool {
        self.0 & Self::KERNEL == Self::KERNEL
    }

    #[inline(always)]
    fn name(self) -> Name {
        Name::from_bits((self.0 >> Self::TAG_BITS) as u32)
    }
}

/// What a handle is besides its rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// OBJ_INHERIT: a new process whose maker says so gets it, too.
    pub inherit: bool,
    /// OBJ_PROTECT_CLOSE: it can't be closed.
    pub protect_from_close: bool,
}

/// What a table keeps of a handle: the rights in bits 0–31, the attributes above.
#[derive(Clone, Copy)]
struct Info(u64);

impl Info {
    const INHERIT: u64 = 1 << 32;
    const PROTECT: u64 = 1 << 33;

    fn new(granted: AccessMask, attributes: Attributes) -> Self {
        Self(u64::from(granted.0)).with(attributes)
    }

    fn with(self, attributes: Attributes) -> Self {
        let inherit = if attributes.inherit { Self::INHERIT } else { 0 };
        let protect = if attributes.protect_from_close { Self::PROTECT } else { 0 };
        Self(self.0 & !(Self::INHERIT | Self::PROTECT) | inherit | protect)
    }

    #[inline(always)]
    fn granted(self) -> AccessMask {
        AccessMask(self.0 as u32)
    }

    fn attributes(self) -> Attributes {
        Attributes { inherit: self.0 & Self::INHERIT != 0, protect_from_close: self.0 & Self::PROTECT != 0 }
    }
}

// SAFETY: aligned to 16; the pool's addresses and a host's have 48 bits.
unsafe impl Counted for Header {
    #[inline(always)]
    unsafe fn acquire(object: NonNull<Self>, count: u32) {
        // SAFETY: somebody has a reference.
        unsafe { object.as_ref() }.references.acquire_many(count);
    }
}

/// A process's handles, or the kernel's. [`end`](Self::end) it: one that is dropped as it is keeps its objects and its memory for ever.
pub struct HandleTable {
    table: Table<Header, ObjectLock>,
    is_kernel: bool,
}

fn header_of(object: ObRef) -> NonNull<Header> {
    // SAFETY: an object's body.
    unsafe { Header::of(object.into_raw()) }
}

/// # Safety
/// A reference to it is the caller's, and becomes the result's.
#[inline(always)]
unsafe fn object_of(header: NonNull<Header>) -> ObRef {
    // SAFETY: the caller's; the pointer came from a body's (T1).
    unsafe { ObRef::<Object>::from_raw(Header::body(header).cast()) }
}

/// A handle was closed: what the entry had is given back, its object told, and a temporary name ended with the last one.
fn closed(it: Closed<Header>, at: &mut Irql<Passive>) {
    // SAFETY: one of the entry's references (T1).
    let object = unsafe { object_of(it.object) };
    let header = object.header();
    let more = it.references - 1;
    // The object's reference is left.
    let is_last = more != 0 && header.references.release_many(more);
    debug_assert!(!is_last);
    let left = header.handles.fetch_sub(1, Ordering::AcqRel) - 1;
    object.closed(left, at);
    end_name_without_handles(&object, left, at);
}

/// `left` handles were left: without any, a temporary name ends.
fn end_name_without_handles(object: &ObRef, left: u32, at: &mut Irql<Passive>) {
    if left == 0 && !object.header().is_permanent() {
        directory::unname_unused(object, at);
    }
}

impl HandleTable {
    /// An empty one, for a process. It takes memory with its first handle.
    #[expect(clippy::new_without_default, reason = "there are two kinds")]
    pub const fn new() -> Self {
        Self { table: Table::new(), is_kernel: false }
    }

    /// An empty one, for the kernel.
    pub const fn kernel() -> Self {
        Self { table: Table::new(), is_kernel: true }
    }

    /// The name that `handle` has here, if it is of this table and `mode` may use it.
    #[inline(always)]
    fn name(&self, handle: Handle, mode: ProcessorMode) -> Result<Name, NtStatus> {
        let upper = handle.0 & Handle::KERNEL;
        let is_mine = if self.is_kernel {
            upper == Handle::KERNEL && mode == ProcessorMode::Kernel
        } else {
            upper == 0
        };
        if is_mine { Ok(handle.name()) } else { Err(NtStatus::INVALID_HANDLE) }
    }

    #[inline(always)]
    fn look<L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        mode: ProcessorMode,
        at: &mut Irql<L>,
    ) -> Result<(ObRef, Info), NtStatus> {
        let name = self.name(handle, mode)?;
        let (header, info) = self.table.lookup(name, at).ok_or(NtStatus::INVALID_HANDLE)?;
        // SAFETY: the lookup's reference.
        Ok((unsafe { object_of(header) }, Info(info)))
    }

    /// A reference to what `handle` leads to, of type `wanted` if one is given, with the rights `access` if `mode` is the user's.
    ///
    /// # Errors
    /// STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH, STATUS_ACCESS_DENIED: looked at in this order.
    #[inline]
    #[doc(alias = "ObReferenceObjectByHandle")]
    pub fn reference_any<L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        access: AccessMask,
        wanted: Option<&Type>,
        mode: ProcessorMode,
        at: &mut Irql<L>,
    ) -> Result<ObRef, NtStatus> {
        let (object, info) = self.look(handle, mode, at)?;
        if wanted.is_some_and(|wanted| !object.object_type().is(wanted)) {
            return Err(NtStatus::OBJECT_TYPE_MISMATCH);
        }
        if mode == ProcessorMode::User && !info.granted().contains(access) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(object)
    }

    /// [`reference_any`](Self::reference_any), as what it is.
    ///
    /// # Errors
    /// As [`reference_any`](Self::reference_any).
    #[inline]
    pub fn reference<T: Body, L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        access: AccessMask,
        mode: ProcessorMode,
        at: &mut Irql<L>,
    ) -> Result<ObRef<T>, NtStatus> {
        let object = self.reference_any(handle, access, Some(T::object_type().any()), mode, at)?;
        object.downcast().map_err(|_| NtStatus::OBJECT_TYPE_MISMATCH)
    }

    /// The rights and attributes of `handle`; stale at once.
    ///
    /// # Errors
    /// STATUS_INVALID_HANDLE.
    pub fn query<L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        mode: ProcessorMode,
        at: &mut Irql<L>,
    ) -> Result<(AccessMask, Attributes), NtStatus> {
        let (_, info) = self.look(handle, mode, at)?;
        Ok((info.granted(), info.attributes()))
    }

    /// Changes the attributes of `handle`.
    ///
    /// # Errors
    /// STATUS_INVALID_HANDLE.
    #[doc(alias = "ObSetHandleAttributes")]
    pub fn set_attributes<L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        attributes: Attributes,
        mode: ProcessorMode,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let name = self.name(handle, mode)?;
        let is_changed = self.table.change_info(name, |info| Info(info).with(attributes).0, at);
        if is_changed { Ok(()) } else { Err(NtStatus::INVALID_HANDLE) }
    }

    /// A free entry; the table grows for it.
    fn take(&self, at: &mut Irql<Passive>) -> Result<Vacant<'_, Header>, NtStatus> {
        loop {
            if let Some(vacant) = self.table.take(at) {
                return Ok(vacant);
            }
            self.grow(at)?;
        }
    }

    /// Sees to it that some entry is free.
    #[cold]
    pub(super) fn grow(&self, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let mut blocks = Blocks { leaf: None, branch: None };
        let grown = loop {
            // SAFETY: written below; the table gives them back in `end`.
            match unsafe { self.table.grow(&mut blocks, at) } {
                Growth::Done => break Ok(()),
                Growth::Full => break Err(NtStatus::INSUFFICIENT_RESOURCES),
                Growth::Leaf => {
                    let Ok(block) = machine::allocate(TAG, size_of::<Leaf<Header>>(), at) else {
                        break Err(NtStatus::INSUFFICIENT_RESOURCES);
                    };
                    // SAFETY: fresh memory for it.
                    unsafe { Leaf::<Header>::write(block.cast()) };
                    blocks.leaf = Some(block.cast());
                }
                Growth::Branch => {
                    let Ok(block) = machine::allocate(TAG, size_of::<Branch<Header>>(), at) else {
                        break Err(NtStatus::INSUFFICIENT_RESOURCES);
                    };
                    // SAFETY: fresh memory for it.
                    unsafe { Branch::<Header>::write(block.cast()) };
                    blocks.branch = Some(block.cast());
                }
            }
        };
        free(blocks, at);
        grown
    }

    /// T1: the reference becomes the entry's, which is counted before anybody can close it.
    fn fill(&self, vacant: Vacant<'_, Header>, object: ObRef, info: Info) -> Handle {
        object.header().handles.fetch_add(1, Ordering::Relaxed);
        self.fill_counted(vacant, object, info)
    }

    fn fill_counted(&self, vacant: Vacant<'_, Header>, object: ObRef, info: Info) -> Handle {
        // SAFETY: the reference is the object's own, and given away.
        let name = unsafe { vacant.fill(header_of(object), info.0) };
        Handle::new(name, self.is_kernel)
    }

    /// A handle to `object`, with the rights `access`.
    ///
    /// # Errors
    /// STATUS_ACCESS_DENIED: the type has no such rights; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ObOpenObjectByPointer")]
    pub fn open(
        &self,
        object: ObRef,
        access: AccessMask,
        attributes: Attributes,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        let granted = object.object_type().grant(access)?;
        let vacant = self.take(at)?;
        Ok(self.fill(vacant, object, Info::new(granted, attributes)))
    }

    /// A handle to `object` with the rights that its descriptor gives `who` of `access`; nobody is the kernel. An object without a descriptor is
    /// open to all.
    ///
    /// # Errors
    /// As [`open`](Self::open), and as [`Security::check`](crate::se::Security::check).
    #[doc(alias = "ObOpenObjectByPointer")]
    pub fn open_for(
        &self,
        object: ObRef,
        access: AccessMask,
        attributes: Attributes,
        who: Option<&Subject<'_>>,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        let (Some(security), Some(who)) = (object.security(), who) else {
            return self.open(object, access, attributes, at);
        };
        let mut granted = security.check(who, access, object.object_type().mapping(), at)?;
        if access.contains(AccessMask::MAXIMUM_ALLOWED) {
            // Its list may allow what the type hasn't.
            granted = granted & object.object_type().valid_access();
        }
        self.open(object, granted, attributes, at)
    }

    /// A handle to what `path` leads to, of type `wanted` if one is given.
    ///
    /// # Errors
    /// As [`Namespace::open`] and [`open`](Self::open).
    #[doc(alias = "ObOpenObjectByName")]
    pub fn open_by_name(
        &self,
        names: &Namespace,
        path: Path<'_>,
        wanted: Option<&'static Type>,
        access: AccessMask,
        attributes: Attributes,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        self.open_by_name_with(names, path, wanted, access, attributes, None, at)
    }

    /// [`open_by_name`](Self::open_by_name), with what the caller has for parse procedures.
    ///
    /// # Errors
    /// As [`open_by_name`](Self::open_by_name).
    #[doc(alias = "ObOpenObjectByName")]
    #[expect(clippy::too_many_arguments, reason = "what OBJECT_ATTRIBUTES says, and the rights")]
    pub fn open_by_name_with(
        &self,
        names: &Namespace,
        path: Path<'_>,
        wanted: Option<&'static Type>,
        access: AccessMask,
        attributes: Attributes,
        context: Option<&mut dyn Any>,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        // Before anybody is asked to make anything; where no type is wanted, by who makes it.
        wanted.map_or(Ok(access), |wanted| wanted.grant(access))?;
        let object = names.open_for(path, wanted, access, context, at)?;
        self.open(object, access, attributes, at)
    }

    /// Names a new object and opens it: both, or neither.
    ///
    /// # Errors
    /// As [`Namespace::enter`] and [`open`](Self::open).
    #[doc(alias = "ObInsertObject")]
    #[expect(clippy::too_many_arguments, reason = "what OBJECT_ATTRIBUTES says, and the rights")]
    pub fn insert(
        &self,
        names: &Namespace,
        path: Path<'_>,
        permanence: Permanence,
        object: ObRef,
        access: AccessMask,
        attributes: Attributes,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        let granted = object.object_type().grant(access)?;
        // Below, a refusal may end a name: never one that was given without a handle.
        if object.is_named(at) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        // T2: nothing but the name can fail behind it.
        let vacant = self.take(at)?;
        // Counted before it has the name: who opens it by that and closes it again must not find that it was the last one.
        object.header().handles.fetch_add(1, Ordering::Relaxed);
        if let Err(status) = names.enter(path, &object, permanence, at) {
            self.table.give_back(vacant, at);
            // Of a name that it had before, others may have closed the last handle meanwhile.
            let left = object.header().handles.fetch_sub(1, Ordering::AcqRel) - 1;
            end_name_without_handles(&object, left, at);
            return Err(status);
        }
        Ok(self.fill_counted(vacant, object, Info::new(granted, attributes)))
    }

    /// Closes `handle`; it leads nowhere before its object is told.
    ///
    /// # Errors
    /// STATUS_INVALID_HANDLE; STATUS_HANDLE_NOT_CLOSABLE.
    #[doc(alias = "ObCloseHandle")]
    pub fn close(&self, handle: Handle, mode: ProcessorMode, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let name = self.name(handle, mode)?;
        match self.table.close(name, |info| !Info(info).attributes().protect_from_close, at) {
            Ok(it) => {
                closed(it, at);
                Ok(())
            }
            Err(NotClosed::Unknown) => Err(NtStatus::INVALID_HANDLE),
            Err(NotClosed::Kept) => Err(NtStatus::HANDLE_NOT_CLOSABLE),
        }
    }

    /// A handle in `target` to what `handle` leads to here, with its rights or with `access`.
    ///
    /// # Errors
    /// STATUS_INVALID_HANDLE; STATUS_ACCESS_DENIED: rights that the type hasn't, or, for the user, that `handle` hasn't;
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwDuplicateObject")]
    pub fn duplicate(
        &self,
        handle: Handle,
        target: &HandleTable,
        access: Option<AccessMask>,
        attributes: Attributes,
        mode: ProcessorMode,
        at: &mut Irql<Passive>,
    ) -> Result<Handle, NtStatus> {
        let (object, info) = self.look(handle, mode, at)?;
        let rights = match access {
            None => info.granted(),
            Some(access) => object.object_type().grant(access)?,
        };
        if mode == ProcessorMode::User && !info.granted().contains(rights) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        let vacant = target.take(at)?;
        Ok(target.fill(vacant, object, Info::new(rights, attributes)))
    }

    /// A table for a process that inherits: those handles of this one that say so, by the same values.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn inherited(&self, at: &mut Irql<Passive>) -> Result<Self, NtStatus> {
        let mut child = Self { table: Table::new(), is_kernel: self.is_kernel };
        let limit = self.table.limit(at);
        while child.table.limit(at) < limit {
            if let Err(status) = child.extend(at) {
                child.end(at);
                return Err(status);
            }
        }
        let entry = |index| {
            let name = self.table.name_at(index)?;
            let (header, info) = self.table.lookup(name, at)?;
            // SAFETY: the lookup's reference.
            let object = unsafe { object_of(header) };
            if !Info(info).attributes().inherit {
                return None;
            }
            object.header().handles.fetch_add(1, Ordering::Relaxed);
            Some((name, header_of(object), info))
        };
        // SAFETY: the lookup's references, given away.
        unsafe { child.table.fill(entry) };
        Ok(child)
    }

    /// Grows, though entries may be free.
    fn extend(&mut self, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        // Nothing is entered yet, so a free list that is forgotten is made anew by `fill`.
        self.table.forget_free();
        self.grow(at)
    }

    /// Closes all handles, protected ones too, and gives the memory back. Others have ended their use of it.
    pub fn end(&mut self, at: &mut Irql<Passive>) {
        self.table.sweep(|it| closed(it, at));
        self.table.end(|blocks| free(blocks, at));
    }
}

/// Gives back what a table doesn't have.
fn free(blocks: Blocks<Header>, at: &mut Irql<Passive>) {
    if let Some(leaf) = blocks.leaf {
        // SAFETY: allocated in `grow`, and no table's.
        unsafe { machine::free(leaf.cast(), TAG, at) };
    }
    if let Some(branch) = blocks.branch {
        // SAFETY: as above.
        unsafe { machine::free(branch.cast(), TAG, at) };
    }
}

/// On whose behalf handles are used: which tables there are, and what may be done with them.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The process's.
    pub process: &'a HandleTable,
    /// The kernel's.
    pub kernel: &'a HandleTable,
    /// The user's mode has no kernel handles.
    pub mode: ProcessorMode,
}

impl<'a> Caller<'a> {
    /// The table of `handle`.
    #[inline(always)]
    pub fn table(&self, handle: Handle) -> &'a HandleTable {
        if handle.is_kernel() { self.kernel } else { self.process }
    }

    /// As [`HandleTable::reference`], in whichever table.
    ///
    /// # Errors
    /// As [`HandleTable::reference_any`].
    #[inline]
    pub fn reference<T: Body, L: Below<ObjectLock>>(
        &self,
        handle: Handle,
        access: AccessMask,
        at: &mut Irql<L>,
    ) -> Result<ObRef<T>, NtStatus> {
        self.table(handle).reference(handle, access, self.mode, at)
    }

    /// As [`HandleTable::close`], in whichever table.
    ///
    /// # Errors
    /// As [`HandleTable::close`].
    #[doc(alias = "ZwClose")]
    pub fn close(&self, handle: Handle, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        self.table(handle).close(handle, self.mode, at)
    }
}
