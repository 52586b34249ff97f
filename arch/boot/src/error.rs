//! Everything that ends a boot, as one line.

use core::fmt;

use crate::acpi::AcpiError;
use crate::arena::ArenaFull;
use crate::elf::ElfError;
use crate::initrd::InitrdError;
use crate::memory_map::MemoryError;
use crate::paging::PagingError;
use crate::requests::RequestError;
use crate::start_info::StartInfoError;

macro_rules! error {
    ($($name:ident($inner:ty),)*) => {
        /// Why the kernel was not started.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is the error of one module, described there")]
        pub enum Error { $($name($inner)),* }

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$name(error) => error.fmt(f)),* }
            }
        }

        $(impl From<$inner> for Error {
            fn from(error: $inner) -> Self {
                Self::$name(error)
            }
        })*
    };
}

error! {
    StartInfo(StartInfoError),
    Memory(MemoryError),
    Initrd(InitrdError),
    Elf(ElfError),
    Request(RequestError),
    Acpi(AcpiError),
    Paging(PagingError),
    Arena(ArenaFull),
}
