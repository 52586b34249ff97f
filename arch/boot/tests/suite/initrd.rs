//! The initrd: a kernel alone, archives, every refusal, and random and mutated archives.

use crate::common::{archive, archive_entry};
use boot::initrd::{Initrd, InitrdError as E, MAX_MODULES, relative};
use proptest::prelude::*;

use crate::checks;

fn refusal(bytes: &[u8]) -> E {
    Initrd::parse(bytes).expect_err("the archive is spoilt")
}

#[test]
fn what_is_no_archive_is_the_kernel() {
    for bytes in [&b"\x7fELF..."[..], b"", b"070702"] {
        let initrd = Initrd::parse(bytes).expect("no archive, nothing to refuse");
        assert_eq!((initrd.kernel.name, initrd.kernel.data), (&b"kernel"[..], bytes));
        assert!(initrd.modules().is_empty());
    }
}

#[test]
fn first_file_is_the_kernel_and_the_others_are_modules() {
    let bytes = archive(&[("./kirql", b"kernel!"), ("drivers/null.sys", b""), ("/seed", b"abc")]);
    let initrd = Initrd::parse(&bytes).expect("a good archive");
    assert_eq!((initrd.kernel.name, initrd.kernel.data), (&b"kirql"[..], &b"kernel!"[..]));
    let modules: Vec<_> = initrd.modules().iter().map(|file| (file.name, file.data)).collect();
    assert_eq!(modules, [(&b"drivers/null.sys"[..], &b""[..]), (b"seed", b"abc")]);
    checks::initrd(&bytes);
}

#[test]
fn refusals() {
    let good = archive(&[("kernel", b"12345"), ("module", b"123")]);
    // The last three bytes are padding.
    assert_eq!(refusal(&good[..good.len() - 4]), E::Truncated(3));
    assert_eq!(refusal(&good[..110]), E::Truncated(0));
    assert_eq!(refusal(&archive(&[])), E::NoKernel);
    assert_eq!(refusal(&archive(&[("kernel", b""), ("./", b"")])), E::Name(2));
    assert_eq!(refusal(&archive(&[("ker\0nel", b"")])), E::Name(1));

    let mut no_digit = good.clone();
    no_digit[6 + 8] = b'g';
    assert_eq!(refusal(&no_digit), E::Header(0));
    let second = 110 + 2; // the folder's header and name, already a multiple of four
    let mut no_magic = good.clone();
    no_magic[second] = b'1';
    assert_eq!(refusal(&no_magic), E::Header(1));
    let mut no_end = good.clone();
    no_end[110 + 1] = b'x';
    assert_eq!(refusal(&no_end), E::Name(0));
    let mut too_long = good.clone();
    too_long[second + 6 + 8 * 6] = b'f';
    assert_eq!(refusal(&too_long), E::Truncated(1));
}

#[test]
fn modules_are_counted() {
    let files = |count| vec![("file", &b"x"[..]); count];
    assert_eq!(
        Initrd::parse(&archive(&files(MAX_MODULES + 1))).expect("as many as allowed").modules().len(),
        32
    );
    assert_eq!(refusal(&archive(&files(MAX_MODULES + 2))), E::TooManyModules);
}

#[test]
fn what_follows_the_trailer_is_not_read() {
    let mut bytes = archive(&[("kernel", b"12345")]);
    archive_entry(&mut bytes, "late", 0o100_644, b"x");
    bytes.extend([0xff; 100]);
    assert!(Initrd::parse(&bytes).expect("the trailer ends it").modules().is_empty());
}

#[test]
fn names_are_compared_without_their_start() {
    assert_eq!(relative(b"/a/b"), b"a/b");
    assert_eq!(relative(b".//./a"), b"a");
    assert_eq!(relative(b"..a"), b"..a");
}

proptest! {
    #[test]
    fn archives_are_read_as_they_were_written(
        files in prop::collection::vec(("[a-z]{1,9}(/[a-z.]{1,9})?", prop::collection::vec(any::<u8>(), 0..99)), 1..9),
    ) {
        let files: Vec<_> = files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
        let bytes = archive(&files);
        let initrd = Initrd::parse(&bytes).expect("a good archive");
        let read: Vec<_> = std::iter::once(&initrd.kernel).chain(initrd.modules())
            .map(|file| (std::str::from_utf8(file.name).expect("letters"), file.data))
            .collect();
        prop_assert_eq!(read, files);
    }

    #[test]
    fn mutated_archives_keep_the_invariants(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = archive(&[("kernel", b"12345"), ("module", b"123"), ("other", b"")]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        checks::initrd(&bytes);
    }
}
