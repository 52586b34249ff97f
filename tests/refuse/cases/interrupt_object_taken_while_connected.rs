//! The memory of a connected object is its connection's: it comes back from the disconnect alone.
#![no_std]
use kernel::ke::interrupt::{ConnectError, Connection, OwnInterrupt, Request};
use kernel::mm::pool::Owned;
use sync::irql::{Irql, Passive};

pub fn f(
    object: Owned<OwnInterrupt<u32>>,
    request: &Request,
    at: &mut Irql<Passive>,
) -> Result<Owned<OwnInterrupt<u32>>, (ConnectError, Owned<OwnInterrupt<u32>>)> {
    let connection = Connection::new(object, request, at)?;
    #[cfg(refused)]
    return Ok(object);
    #[cfg(not(refused))]
    return Ok(connection.disconnect(at));
}
