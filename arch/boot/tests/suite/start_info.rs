//! The start info: what is copied out of it, every refusal, and random and mutated ones.

use crate::common::{START_INFO, StartInfoFile};
use boot::memory::Window;
use boot::start_info::{FirmwareRange, MAX_COMMAND_LINE, StartInfo, StartInfoError as E};
use proptest::prelude::*;

use crate::checks;

fn read(file: &StartInfoFile) -> Result<StartInfo, E> {
    StartInfo::read(&Window::new(START_INFO, &file.build()), START_INFO)
}

fn refusal(spoil: impl FnOnce(&mut StartInfoFile)) -> E {
    let mut file = StartInfoFile::new();
    spoil(&mut file);
    read(&file).expect_err("the start info is spoilt")
}

#[test]
fn everything_is_copied() {
    let file = StartInfoFile::new();
    let info = read(&file).expect("a good start info");
    assert_eq!(info.command_line(), b"seed=1 only=boot");
    assert_eq!(info.ranges().len(), file.ranges.len());
    assert_eq!(info.ranges()[1], FirmwareRange { base: 0x9_fc00, length: 0x400, kind: 2 });
    assert_eq!(info.initrd_length, 10);
    assert_eq!(info.initrd_base, START_INFO + file.build().len() as u64 - 10);
    assert_eq!(info.rsdp, 0xf_5250);
}

#[test]
fn command_line_may_be_absent_or_of_the_greatest_length() {
    let mut file = StartInfoFile { command_line: None, ..StartInfoFile::new() };
    assert_eq!(read(&file).expect("no line is allowed").command_line(), b"");
    file.command_line = Some(vec![b'x'; MAX_COMMAND_LINE]);
    assert_eq!(read(&file).expect("it fits").command_line().len(), MAX_COMMAND_LINE);
    file.command_line = Some(vec![b'x'; MAX_COMMAND_LINE + 1]);
    assert_eq!(read(&file).unwrap_err(), E::CommandLine);
}

#[test]
fn refusals() {
    assert_eq!(refusal(|file| file.magic = 1), E::Magic(1));
    assert_eq!(refusal(|file| file.version = 0), E::Version(0));
    assert_eq!(refusal(|file| file.modules = 0), E::NoInitrd);
    assert_eq!(refusal(|file| file.initrd.clear()), E::NoInitrd);
    assert_eq!(refusal(|file| file.range_count = Some(129)), E::MemoryMapTooLong(129));
    assert_eq!(refusal(|file| file.range_count = Some(128)), E::MemoryMapUnreadable);
    assert_eq!(E::NoInitrd.to_string(), "no kernel; give one with -initrd");
}

#[test]
fn what_is_cut_off_is_named() {
    let file = StartInfoFile::new().build();
    let cut = |len| StartInfo::read(&Window::new(START_INFO, &file[..len]), START_INFO).unwrap_err();
    assert_eq!(cut(55), E::Unreadable);
    assert_eq!(cut(56), E::MemoryMapUnreadable);
    assert_eq!(cut(56 + 7 * 24), E::InitrdUnreadable);
    assert_eq!(cut(file.len() - 1), E::InitrdUnreadable);
}

proptest! {
    #[test]
    fn mutated_start_infos_keep_the_invariants(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        line in prop::collection::vec(1..=255_u8, 0..40),
    ) {
        let mut file = StartInfoFile { command_line: Some(line), ..StartInfoFile::new() }.build();
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        checks::start_info(&file);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        checks::start_info(&bytes);
        let mut named = StartInfoFile::new().build()[..8].to_vec();
        named.extend(bytes);
        checks::start_info(&named);
    }
}
