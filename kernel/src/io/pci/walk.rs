//! All functions behind a root: bus by bus, each once.
//!
//! Invariants: I1 a bus is looked at once. A bridge to a bus that was, or is to be, leads nowhere new: so the walk ends, whatever the
//!                bridges say, after at most 256 buses.
//! Tests:      tests/props/tests/pci.rs.
//! Sources:    PCI Express Base Specification, "Configuration Space Routing".

use super::config::{Address, Config};
use super::header::{Header, Kind};

/// The functions of a segment.
pub trait Functions {
    /// One's configuration space, with nothing in it where there is no function; `None`: the bus can't be reached.
    fn at(&mut self, address: Address) -> Option<impl Config>;
}

/// Tells every function of bus 0, and of the buses behind its bridges.
///
/// # Errors
/// What `tell` returns first.
pub fn walk<F: Functions, E>(
    functions: &mut F,
    mut tell: impl FnMut(&mut F, Address, &Header) -> Result<(), E>,
) -> Result<(), E> {
    let (mut seen, mut left) = ([0_u64; 4], [0_u64; 4]);
    (seen[0], left[0]) = (1, 1);
    while let Some(bus) = take_lowest(&mut left) {
        for device in 0..32 {
            // Only function 0 says whether there are more.
            let mut count = 1;
            for function in 0..8 {
                if function >= count {
                    break;
                }
                let address = Address::new(bus, device, function);
                let header = functions.at(address).and_then(|mut config| Header::read(&mut config));
                let Some(header) = header else { continue };
                if header.is_multifunction && function == 0 {
                    count = 8;
                }
                if let Kind::Bridge { secondary } = header.kind {
                    let (word, bit) = (usize::from(secondary / 64), 1 << (secondary % 64));
                    left[word] |= bit & !seen[word];
                    seen[word] |= bit;
                }
                tell(functions, address, &header)?;
            }
        }
    }
    Ok(())
}

fn take_lowest(buses: &mut [u64; 4]) -> Option<u8> {
    let word = buses.iter().position(|&bits| bits != 0)?;
    let bit = buses[word].trailing_zeros();
    buses[word] &= buses[word] - 1;
    Some((word as u32 * 64 + bit) as u8)
}
