//! An interrupt object that isn't static: in the pool, with its lock in itself, and connected for as long as a [`Connection`] owns it.
//!
//! This is what a driver's `IoConnectInterrupt` makes, where the object is the system's: its `PKINTERRUPT` is the object's address, `T`
//! the routine and the context that the driver gave. What the two lack of NT is a lock of the driver's own, by address, in
//! place of the object's.
//!
//! Invariants: I1 while a `Connection` exists the object stays in its place (object.rs, I2): it is taken out by a disconnect alone, and
//!                a connection that is forgotten or dropped leaves its memory to the chain, for ever.

use core::mem::ManuallyDrop;
use core::ops::Deref;

use sync::irql::{Below, Dispatch, Irql, MayBlock};

use super::object::OwnInterrupt;
use super::routing::{ConnectError, Request, Route};
use crate::mm::pool::Owned;

/// A connected object. Derefs to it, so that it can be synchronized with and moved.
#[must_use = "dropped, it stays connected for ever"]
pub struct Connection<T: Send + 'static> {
    object: ManuallyDrop<Owned<OwnInterrupt<T>>>,
    route: Route,
}

impl<T: Send + 'static> Connection<T> {
    /// Connects `object`.
    ///
    /// # Errors
    /// Why it can't be, and the object.
    #[doc(alias = "IoConnectInterrupt")]
    pub fn new<L: MayBlock + Below<Dispatch>>(
        object: Owned<OwnInterrupt<T>>,
        request: &Request,
        at: &mut Irql<L>,
    ) -> Result<Self, (ConnectError, Owned<OwnInterrupt<T>>)> {
        let object = ManuallyDrop::new(object);
        // SAFETY: in the pool it doesn't move, and it is freed only by what `disconnect` gives back (I1).
        match unsafe { object.connect_raw(request, at) } {
            Ok(route) => Ok(Self { object, route }),
            Err(error) => Err((error, ManuallyDrop::into_inner(object))),
        }
    }

    /// What it got when it was connected.
    pub fn route(&self) -> Route {
        self.route
    }

    /// Disconnects it, and gives the object back when no processor is in its ISR any more.
    #[doc(alias = "IoDisconnectInterrupt")]
    pub fn disconnect<L: MayBlock + Below<Dispatch>>(self, at: &mut Irql<L>) -> Owned<OwnInterrupt<T>> {
        // False: it was disconnected through a reference, which returned before `self` could be moved here.
        self.object.disconnect(at);
        ManuallyDrop::into_inner(self.object)
    }
}

impl<T: Send + 'static> Deref for Connection<T> {
    type Target = OwnInterrupt<T>;

    fn deref(&self) -> &OwnInterrupt<T> {
        &self.object
    }
}
