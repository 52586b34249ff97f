//! ACPI: from the RSDP to the processors, every refusal, and random and mutated tables.

use crate::common::{RSDP, acpi, fix_checksum, io_apic, local_apic, local_x2apic, madt, table};
use boot::acpi::{AcpiError as E, MAX_PROCESSORS, Madt, Processor, search_rsdp};
use boot::memory::Window;
use proptest::prelude::*;

use crate::checks;

fn read(memory: &[u8]) -> Result<Madt, E> {
    let mut madt = Madt::empty();
    madt.read(&Window::new(RSDP, memory), RSDP).map(|()| madt)
}

fn parse(madt: &[u8]) -> Result<Madt, E> {
    let mut parsed = Madt::empty();
    parsed.parse(madt).map(|()| parsed)
}

fn some_madt() -> Vec<u8> {
    madt(&[local_apic(0, 0, 1), local_apic(1, 4, 1), local_x2apic(2, 300, 1), io_apic(0xfec0_0000)])
}

const SOME_PROCESSORS: [Processor; 3] =
    [Processor { uid: 0, apic_id: 0 }, Processor { uid: 1, apic_id: 4 }, Processor { uid: 2, apic_id: 300 }];

#[test]
fn madt_is_found_through_the_old_root_and_the_new() {
    for new in [false, true] {
        let found = read(&acpi(new, &[table(b"FACP", &[0; 20])], &some_madt())).expect("good tables");
        assert_eq!(found.processors(), SOME_PROCESSORS);
        assert_eq!(found.io_apics(), [0xfec0_0000]);
    }
}

#[test]
fn new_rsdp_without_a_new_root_leads_to_the_old() {
    let mut memory = acpi(false, &[], &some_madt());
    memory[15] = 2;
    fix_checksum(&mut memory[..20], 8);
    fix_checksum(&mut memory[..36], 32);
    assert_eq!(read(&memory).expect("good tables").processors(), SOME_PROCESSORS);
}

#[test]
fn machine_without_a_madt_lists_nothing() {
    let found = read(&acpi(true, &[], &table(b"FACP", b""))).expect("good tables");
    assert!(found.processors().is_empty());
}

#[test]
fn disabled_and_absent_processors_are_left_out() {
    let entries = [
        local_apic(0, 0, 1),
        local_apic(1, 1, 0),
        local_apic(2, 2, 2), // could be brought online, but is not there now
        local_apic(3, 255, 1),
        local_x2apic(4, u32::MAX, 1),
        local_x2apic(5, 5, 0),
    ];
    assert_eq!(parse(&madt(&entries)).expect("good").processors(), [SOME_PROCESSORS[0]]);
}

#[test]
fn processor_named_twice_is_listed_once() {
    let entries = [local_apic(0, 0, 1), local_x2apic(0, 0, 1), local_apic(1, 4, 1), local_x2apic(7, 4, 1)];
    assert_eq!(parse(&madt(&entries)).expect("good").processors(), &SOME_PROCESSORS[..2]);
}

#[test]
fn processors_are_counted() {
    let entries = |count| (0..count).map(|n| local_x2apic(n, n * 2, 1)).collect::<Vec<_>>();
    let most = MAX_PROCESSORS as u32;
    assert_eq!(parse(&madt(&entries(most))).expect("as many as allowed").processors().len(), MAX_PROCESSORS);
    assert_eq!(parse(&madt(&entries(most + 1))).unwrap_err(), E::TooManyProcessors);
}

#[test]
fn entries_of_impossible_length_are_refused() {
    assert_eq!(parse(&madt(&[local_apic(0, 0, 1), vec![200, 0]])).unwrap_err(), E::Entry(52));
    assert_eq!(parse(&madt(&[vec![200, 1, 0]])).unwrap_err(), E::Entry(44));
    assert_eq!(parse(&madt(&[vec![200, 4, 0]])).unwrap_err(), E::Entry(44));
    assert_eq!(parse(&madt(&[vec![200]])).unwrap_err(), E::Entry(44));
    assert_eq!(parse(&madt(&[vec![9, 8, 0, 0, 0, 0, 0, 0]])).unwrap_err(), E::Entry(44));
    assert!(parse(&madt(&[vec![200, 2], local_apic(0, 0, 1)])).is_ok());
}

#[test]
fn spoilt_tables_are_named() {
    let spoil = |new, at: usize, value: u8| {
        let mut memory = acpi(new, &[], &some_madt());
        memory[at] ^= value;
        read(&memory).expect_err("spoilt")
    };
    let madt_at = |new| 64 + 36 + if new { 8 } else { 4 };
    assert_eq!(spoil(true, 0, 1), E::Signature("RSDP"));
    assert_eq!(spoil(true, 10, 1), E::Checksum("RSDP"));
    assert_eq!(spoil(true, 33, 1), E::Checksum("RSDP"));
    for (new, root) in [(false, "RSDT"), (true, "XSDT")] {
        assert_eq!(spoil(new, 64, 1), E::Signature(root));
        assert_eq!(spoil(new, 64 + 20, 1), E::Checksum(root));
        assert_eq!(spoil(new, 64 + 4, 0x80), E::Unreadable(root));
        assert_eq!(spoil(new, 64 + 4, if new { 44 } else { 40 } ^ 35), E::Unreadable(root));
        assert_eq!(spoil(new, madt_at(new) + 40, 1), E::Checksum("MADT"));
    }
}

#[test]
fn unreadable_tables_are_named() {
    let memory = acpi(true, &[], &some_madt());
    assert_eq!(read(&memory[..19]).unwrap_err(), E::Unreadable("RSDP"));
    assert_eq!(read(&memory[..35]).unwrap_err(), E::Unreadable("RSDP"));
    assert_eq!(read(&memory[..64 + 43]).unwrap_err(), E::Unreadable("XSDT"));
    assert_eq!(read(&memory[..memory.len() - 1]).unwrap_err(), E::Unreadable("MADT"));
    assert_eq!(E::Checksum("MADT").to_string(), "ACPI: the MADT has a wrong checksum");
}

#[test]
fn rsdp_is_found_in_the_bios_area() {
    let mut area = vec![0; 0x2_0000];
    area[0x4000..0x4008].copy_from_slice(b"RSD PTR "); // a text that only looks like one
    area[0x4000] = b'R';
    area[0x4010] = 1;
    let rsdp = acpi(true, &[], &some_madt());
    area[0x5250..0x5250 + 36].copy_from_slice(&rsdp[..36]);
    assert_eq!(search_rsdp(&Window::new(0xe_0000, &area)), Some(0xe_5250));
    assert_eq!(search_rsdp(&Window::new(0xe_0000, &area[..0x5250])), None);
}

proptest! {
    #[test]
    fn mutated_tables_keep_the_invariants(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        new in any::<bool>(),
    ) {
        let mut table = some_madt();
        for (at, value) in &changes {
            let at = at.index(table.len());
            table[at] = *value;
        }
        checks::madt(&table);
        fix_checksum(&mut table, 9);
        checks::madt(&acpi(new, &[], &table));
        let mut memory = acpi(new, &[], &some_madt());
        for (at, value) in changes {
            let at = at.index(memory.len());
            memory[at] = value;
        }
        checks::madt(&memory);
    }

    #[test]
    fn random_entries_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        checks::madt(&madt(&[bytes]));
    }
}
