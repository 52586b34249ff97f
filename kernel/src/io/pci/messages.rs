//! A function's messages: its MSI-X table, or its one MSI, and interrupt objects connected to them.
//!
//! ```text
//! connect                                        disconnect
//! the object gets a vector (ke::interrupt)       entry masked, and read back: no message leaves the device any more
//! entry: masked, message written, let through    the object leaves its vector; what was on its way finds nobody (routing.rs)
//! ```
//!
//! IRQL:       PASSIVE or APC.
//! Invariants: I1 an entry is let through only while an object is connected to the vector that it names.
//!             I2 `taken` has a bit for each entry that is somebody's.
//! Not as NT:  `IoConnectInterruptEx` with CONNECT_MESSAGE_BASED connects all messages at once; here it is one at a time.
//! Tests:      selftest `pci::*`, `disk::*`.
//! Sources:    PCI Local Bus Specification, "MSI-X Operation"; WDK, "Using Message-Signaled Interrupts".

use core::sync::atomic::{AtomicU64, Ordering};

use sync::irql::{Below, DeviceLevel, Dispatch, Irql, MayBlock, Synch};

use super::access::Access;
use super::bus::Function;
use super::config::Address;
use super::msi::{self, Msi, Msix};
use super::registers::{Registers, TableEntry};
use crate::ke::interrupt::{Connection, OwnInterrupt, Request, Route, Share, Source};
use crate::mm::pool::Owned;
use crate::rtl::NtStatus;

/// Entries that are given out, at most.
const MOST: u16 = 64;

enum Kind {
    /// The table.
    Table(Msix, Registers),
    /// The one.
    One(Msi),
}

/// See the module. Ended by [`Messages::end`].
pub struct Messages {
    address: Address,
    kind: Kind,
    /// See I2.
    taken: AtomicU64,
}

/// What a message is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The IRQL that it is delivered at.
    pub level: DeviceLevel,
    /// The processors that may take it.
    pub affinity: u64,
}

/// A message with an interrupt object.
#[must_use = "dropped, it stays connected for ever"]
pub struct Message<T: Send + 'static> {
    connection: Connection<T>,
    index: u16,
}

impl<T: Send + 'static> Message<T> {
    /// Its number in the table: what a device is told to use it by.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it goes.
    pub fn route(&self) -> Route {
        self.connection.route()
    }

    /// The object.
    pub fn object(&self) -> &OwnInterrupt<T> {
        &self.connection
    }
}

impl Messages {
    /// Has the function send messages instead of asserting its line: every one masked so far.
    ///
    /// # Errors
    /// STATUS_NOT_SUPPORTED: it has neither way; STATUS_INSUFFICIENT_RESOURCES.
    pub fn begin<L>(function: &Function, at: &mut Irql<L>) -> Result<Self, NtStatus>
    where
        L: MayBlock + Below<Dispatch> + Below<sync::irql::SpaceLock> + Below<sync::irql::Ipi> + Below<Synch>,
    {
        let address = function.address();
        let kind = if let Some(msix) = function.msix() {
            let bytes = u64::from(msix.count) * u64::from(msi::ENTRY_BYTES);
            let table = function.map(msix.bar.into(), msix.offset.into(), bytes, at)?;
            (0..msix.count).for_each(|index| msi::mask(&mut TableEntry { table: &table, index }));
            msix.enable(&mut Access::new(address, at));
            Kind::Table(msix, table)
        } else if let Some(msi) = function.msi() {
            Kind::One(msi)
        } else {
            return Err(NtStatus::NOT_SUPPORTED);
        };
        Ok(Self { address, kind, taken: AtomicU64::new(0) })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        match &self.kind {
            Kind::Table(msix, _) => msix.count.min(MOST),
            Kind::One(_) => 1,
        }
    }

    /// Connects `object` to the lowest free message.
    ///
    /// # Errors
    /// Nothing is connected then, and the object comes back: STATUS_INSUFFICIENT_RESOURCES, without a vector or a message left.
    pub fn connect<T: Send + 'static, L: MayBlock + Below<Dispatch> + Below<Synch>>(
        &self,
        object: Owned<OwnInterrupt<T>>,
        wanted: Wanted,
        at: &mut Irql<L>,
    ) -> Result<Message<T>, (NtStatus, Owned<OwnInterrupt<T>>)> {
        let Some(index) = self.take() else { return Err((NtStatus::INSUFFICIENT_RESOURCES, object)) };
        let request = Request {
            source: Source::Message,
            level: wanted.level,
            share: Share::Exclusive,
            affinity: wanted.affinity,
        };
        let connection = match Connection::new(object, &request, at) {
            Ok(connection) => connection,
            Err((_, object)) => {
                self.give(index);
                return Err((NtStatus::INSUFFICIENT_RESOURCES, object));
            }
        };
        // Chosen among those that a message can name.
        let Ok(message) = connection.route().message() else {
            self.give(index);
            return Err((NtStatus::INSUFFICIENT_RESOURCES, connection.disconnect(at)));
        };
        match &self.kind {
            Kind::Table(_, table) => msi::set(&mut TableEntry { table, index }, message),
            Kind::One(msi) => msi.enable(&mut Access::new(self.address, at), message),
        }
        Ok(Message { connection, index })
    }

    /// Disconnects a message of these, and gives its object back when no processor is in its ISR any more.
    pub fn disconnect<T: Send + 'static, L: MayBlock + Below<Dispatch> + Below<Synch>>(
        &self,
        message: Message<T>,
        at: &mut Irql<L>,
    ) -> Owned<OwnInterrupt<T>> {
        let Message { connection, index } = message;
        match &self.kind {
            Kind::Table(_, table) => msi::mask(&mut TableEntry { table, index }),
            Kind::One(msi) => msi.disable(&mut Access::new(self.address, at)),
        }
        let object = connection.disconnect(at);
        self.give(index);
        object
    }

    /// Has a message delivered to a processor of `affinity` from now on. Those on their way still arrive where they went.
    /// One caller at a time for a message. Of MSI, what the device raises during the move is lost: it is off then.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: no processor of the affinity can take it; all is as before.
    pub fn retarget<T: Send + 'static, L: MayBlock + Below<Dispatch> + Below<Synch>>(
        &self,
        message: &Message<T>,
        affinity: u64,
        at: &mut Irql<L>,
    ) -> Result<Route, NtStatus> {
        let moved = message.connection.retarget(affinity, at);
        let route = moved.map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let sent = route.message().map_err(|_| NtStatus::INVALID_PARAMETER)?;
        match &self.kind {
            Kind::Table(_, table) => msi::set(&mut TableEntry { table, index: message.index }, sent),
            Kind::One(msi) => msi.enable(&mut Access::new(self.address, at), sent),
        }
        Ok(route)
    }

    /// The function sends none any more. All were disconnected.
    pub fn end<L>(self, at: &mut Irql<L>)
    where
        L: Below<sync::irql::SpaceLock> + Below<sync::irql::Ipi> + Below<Synch>,
    {
        debug_assert_eq!(self.taken.load(Ordering::Relaxed), 0, "a message is still connected");
        if let Kind::Table(msix, table) = self.kind {
            msix.disable(&mut Access::new(self.address, at));
            table.end(at);
        }
    }

    fn take(&self) -> Option<u16> {
        let count = u32::from(self.count());
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            let index = taken.trailing_ones();
            if index >= count {
                return None;
            }
            let more = taken | 1 << index;
            match self.taken.compare_exchange(taken, more, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(index as u16),
                Err(now) => taken = now,
            }
        }
    }

    fn give(&self, index: u16) {
        self.taken.fetch_and(!(1 << index), Ordering::Relaxed);
    }
}
