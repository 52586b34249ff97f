//! A message-signalled interrupt: the address and data that a device writes to raise it (MSI and MSI-X alike).
//!
//! Fixed delivery, edge, physical destination, no redirection hint: address `FEE`, destination in bits 12–19; data is the vector.
//!
//! Sources: SDM vol. 3, "Message Signalled Interrupts".

use crate::redirection::{OutOfReach, destination};

/// What goes into a device's MSI capability or MSI-X table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Message address; its upper half is zero.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

impl Message {
    /// `vector` on the processor with `apic_id`.
    pub const fn new(apic_id: u32, vector: u8) -> Result<Self, OutOfReach> {
        match destination(apic_id) {
            Ok(id) => Ok(Self { address: 0xFEE0_0000 | (id as u64) << 12, data: vector as u32 }),
            Err(refused) => Err(refused),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn destination_and_vector_have_their_places() {
        assert_eq!(Message::new(0, 0x30), Ok(Message { address: 0xFEE0_0000, data: 0x30 }));
        assert_eq!(Message::new(0xFE, 0xBF), Ok(Message { address: 0xFEEF_E000, data: 0xBF }));
    }

    #[test]
    fn an_id_that_does_not_fit_is_refused_and_not_cut() {
        assert_eq!(Message::new(0xFF, 0x30), Err(OutOfReach(0xFF)));
        assert_eq!(Message::new(0x100, 0x30), Err(OutOfReach(0x100)));
    }
}
