//! NT's names for the bytes of a structure that drivers allocate or read: what a C compiler is asked about with NT's header.
//!
//! A structure says by [`nt_layout!`](crate::nt_layout) which of its fields is which of NT's. Tables of that are compared with
//! `ddk/wdm.h` by the step `abi` (tests/abi, ci/src/abi.rs). Every byte must be in a field, or be what alignment leaves.
//!
//! Owns:       the description. Not: the sizes that are asserted beside each structure, which hold without a C compiler, too.
//! Tests:      step `abi`.

/// A structure with NT's layout.
pub trait NtLayout: Sized {
    /// NT's name of the type.
    const NAME: &'static str;
    /// False: only part of NT's structure is declared here, so its size says nothing.
    const WHOLE: bool = true;
    /// The fields, in any order; those of a union may overlap.
    const FIELDS: &'static [Field];
}

/// Some bytes of a structure, and what NT calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As C designates it within the structure: `Tail.Overlay.ListEntry`.
    pub first: &'static str,
    /// The last of several in a row that are one field here; else the same.
    pub last: &'static str,
    /// Bytes from the structure's start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// The size of the field that `_` borrows.
pub const fn size_of_field<T, F>(_: for<'a> fn(&'a T) -> &'a F) -> usize {
    size_of::<F>()
}

/// Implements [`NtLayout`]: `nt_layout! { [] Event = "KEVENT" { header => "Header", } }`. The brackets have the generic
/// parameters; `part` behind the name: not the whole of NT's. `a => "First" ..= "Last"`: one field here, several in a row there.
#[macro_export]
macro_rules! nt_layout {
    ([$($generics:tt)*] $type:ty = $name:literal part { $($fields:tt)* }) => {
        $crate::nt_layout!(@ [$($generics)*] $type, $name, false, $($fields)*);
    };
    ([$($generics:tt)*] $type:ty = $name:literal { $($fields:tt)* }) => {
        $crate::nt_layout!(@ [$($generics)*] $type, $name, true, $($fields)*);
    };
    (@ [$($generics:tt)*] $type:ty, $name:literal, $whole:literal,
        $($($field:ident).+ => $first:literal $(..= $last:literal)?,)*) => {
        impl<$($generics)*> $crate::layout::NtLayout for $type {
            const NAME: &'static str = $name;
            const WHOLE: bool = $whole;
            const FIELDS: &'static [$crate::layout::Field] = &[$(
                $crate::layout::Field {
                    first: $first,
                    last: $crate::nt_layout!(@last $first $($last)?),
                    offset: ::core::mem::offset_of!($type, $($field).+),
                    size: $crate::layout::size_of_field(|it: &$type| &it.$($field).+),
                },
            )*];
        }
    };
    (@last $first:literal) => { $first };
    (@last $first:literal $last:literal) => { $last };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct Subject<T> {
        kind: u8,
        pair: Pair<T>,
    }

    #[repr(C)]
    struct Pair<T> {
        first: u32,
        second: T,
    }

    crate::nt_layout! {
        [T] Subject<T> = "SUBJECT" { kind => "Type", pair.second => "Low" ..= "High", }
    }

    #[test]
    fn fields_have_nts_names_and_the_compilers_numbers() {
        let fields = Subject::<u64>::FIELDS;
        assert_eq!(fields[0], Field { first: "Type", last: "Type", offset: 0, size: 1 });
        let at = core::mem::offset_of!(Subject<u64>, pair.second);
        assert_eq!(fields[1], Field { first: "Low", last: "High", offset: at, size: 8 });
        const { assert!(Subject::<u8>::WHOLE) };
    }
}
