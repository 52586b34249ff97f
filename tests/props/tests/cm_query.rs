//! A driver's table of queries: each kind of entry, what is written where, which routine is told what in which order, defaults, what is
//! required, and the tables that contradict themselves.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::{NonNull, null, null_mut};

use kernel::cm::query::{
    DELETE, DIRECT, KQueryEntry, NOEXPAND, NOVALUE, REQUIRED, SUBKEY, TOPKEY, TYPECHECK, query_values,
};
use kernel::cm::relative::{self, RelativeTo};
use kernel::cm::{self, Creation, Key, ValueType};
use kernel::ob::{Directory, Namespace, ObRef, hosted};
use kernel::rtl::{NtStatus, UnicodeString, WideStr};
use kernel::wide;
use sync::irql::{Irql, Passive};

fn units(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// A string's bytes, with the zeros that `text` has and one more.
fn bytes(text: &str) -> Vec<u8> {
    units(text).iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

/// What a routine was told: name, type, bytes, and the entry's context.
type Told = (Option<String>, u32, Vec<u8>, usize);

thread_local! {
    static TOLD: RefCell<Vec<Told>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "win64" fn routine(
    name: *const u16,
    kind: u32,
    data: *const c_void,
    length: u32,
    context: *mut c_void,
    entry: *mut c_void,
) -> NtStatus {
    assert_eq!(context.addr(), 99);
    let text = (!name.is_null()).then(|| {
        // SAFETY: a zero ends it.
        let units = unsafe { (0..).map(|at| name.add(at).read()).take_while(|unit| *unit != 0) };
        String::from_utf16(&units.collect::<Vec<_>>()).expect("text")
    });
    let bytes = match length {
        0 => Vec::new(),
        // SAFETY: so many are there.
        _ => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length as usize) }.to_vec(),
    };
    TOLD.with_borrow_mut(|told| told.push((text, kind, bytes, entry.addr())));
    if entry.addr() == 666 { NtStatus::UNSUCCESSFUL } else { NtStatus::SUCCESS }
}

struct Registry {
    names: Namespace,
    top: ObRef<Key>,
}

impl Registry {
    fn with(test: impl FnOnce(&Self, &mut Irql<Passive>)) {
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                let names = Namespace::new(at).expect("memory");
                cm::create_standard(&names, at).expect("memory");
                let top =
                    relative::create(&names, RelativeTo::Services, wide!("Driver"), at).expect("memory");
                let this = Self { names, top };
                this.fill(at);
                test(&this, at);
                this.end(at);
            });
        }
    }

    fn fill(&self, at: &mut Irql<Passive>) {
        let parameters =
            Key::create_subkey(&self.top, wide!("Parameters"), &mut Creation::new(), at).expect("memory");
        let mut set = |key: &Key, name: &WideStr, kind, bytes: &[u8]| {
            key.set_value(name, kind, bytes, at).expect("memory")
        };
        set(&self.top, wide!("Text"), ValueType::SZ, &bytes("hello"));
        set(&self.top, wide!("Several"), ValueType::MULTI_SZ, &bytes("one\0two\0"));
        set(&self.top, wide!("Number"), ValueType::DWORD, &7_u32.to_le_bytes());
        set(&self.top, wide!("Long"), ValueType::BINARY, &[1, 2, 3, 4, 5, 6]);
        set(&parameters, wide!("Inner"), ValueType::DWORD, &8_u32.to_le_bytes());
    }

    fn query(&self, entries: &[KQueryEntry], at: &mut Irql<Passive>) -> (Result<(), NtStatus>, Vec<Told>) {
        let mut table = entries.to_vec();
        table.push(KQueryEntry::END);
        let context = std::ptr::without_provenance_mut(99);
        // SAFETY: a table with an end; its entries lead to the test's own.
        let result = unsafe { query_values(&self.names, &self.top, table.as_ptr(), context, at) };
        (result, TOLD.take())
    }

    fn end(self, at: &mut Irql<Passive>) {
        let root = relative::open(&self.names, RelativeTo::Absolute, wide!("\\Registry"), at).expect("there");
        drop(self.top);
        let mut left = vec![root];
        while let Some(last) = left.last().cloned() {
            match last.subkey_at(0, at, |_, below| below.clone()) {
                Ok(below) => left.push(below),
                Err(_) => _ = Key::delete(&left.pop().expect("the last"), at),
            }
        }
        let mut directories = vec![self.names.root().clone()];
        while let Some(directory) = directories.pop() {
            let mut found = Vec::new();
            directory.for_each(at, |_, object| found.push(object.clone()));
            for object in found {
                object.make_temporary(at);
                directories.extend(object.downcast::<Directory>());
            }
        }
        drop(self.names);
        while hosted::work(at) {}
        assert_eq!(hosted::blocks(), 0, "memory was kept");
    }
}

/// The name's units stay the caller's.
fn entry(flags: u32, name: &[u16]) -> KQueryEntry {
    KQueryEntry { flags, name: if name.is_empty() { null() } else { name.as_ptr() }, ..KQueryEntry::END }
}

fn called(flags: u32, name: &[u16], context: usize) -> KQueryEntry {
    let entry_context = std::ptr::without_provenance_mut(context);
    KQueryEntry { routine: Some(routine), entry_context, ..entry(flags, name) }
}

fn direct<T>(flags: u32, name: &[u16], to: &mut T) -> KQueryEntry {
    KQueryEntry { entry_context: std::ptr::from_mut(to).cast(), ..entry(flags | DIRECT, name) }
}

fn told(name: &str, kind: ValueType, bytes: Vec<u8>, context: usize) -> Told {
    (Some(name.to_owned()), kind.0, bytes, context)
}

#[test]
fn routines_are_told_of_what_they_name() {
    Registry::with(|registry, at| {
        let [text, several, number, parameters, inner, missing] =
            ["TEXT", "Several", "Number", "Parameters", "Inner", "Missing"].map(units);
        let entries = [
            called(0, &text, 1),
            called(0, &several, 2),
            called(NOEXPAND, &several, 3),
            called(0, &missing, 4),
            entry(SUBKEY, &parameters),
            called(0, &inner, 5),
            called(0, &number, 6),
            called(TOPKEY, &number, 7),
            called(NOVALUE, &[], 8),
        ];
        let (result, found) = registry.query(&entries, at);
        let dword = |number: u32| number.to_le_bytes().to_vec();
        assert_eq!(result, Ok(()));
        assert_eq!(
            found,
            [
                told("TEXT", ValueType::SZ, bytes("hello"), 1),
                told("Several", ValueType::SZ, bytes("one"), 2),
                told("Several", ValueType::SZ, bytes("two"), 2),
                told("Several", ValueType::MULTI_SZ, bytes("one\0two\0"), 3),
                told("Inner", ValueType::DWORD, dword(8), 5),
                told("Number", ValueType::DWORD, dword(7), 7),
                (None, 0, Vec::new(), 8),
            ]
        );
    });
}

#[test]
fn all_values_are_told_and_deleted_where_asked() {
    Registry::with(|registry, at| {
        let parameters = units("Parameters");
        let (result, found) = registry.query(&[called(NOEXPAND, &[], 1)], at);
        let names: Vec<_> = found.iter().map(|told| told.0.clone().expect("a name")).collect();
        assert_eq!(
            (result, names),
            (Ok(()), ["Text", "Several", "Number", "Long"].map(str::to_owned).to_vec())
        );
        // Those of a key below, by the entry that goes there.
        let (result, found) = registry.query(&[called(SUBKEY | DELETE | REQUIRED, &parameters, 2)], at);
        assert_eq!((result, found.len()), (Ok(()), 1));
        let (result, found) = registry.query(&[called(SUBKEY | REQUIRED, &parameters, 2)], at);
        assert_eq!((result, found.len()), (Err(NtStatus::OBJECT_NAME_NOT_FOUND), 0), "it has none any more");
        let (result, found) = registry.query(&[called(SUBKEY, &parameters, 2)], at);
        assert_eq!((result, found.len()), (Ok(()), 0));
        let (result, found) =
            registry.query(&[called(DELETE, &units("Text"), 2), called(0, &units("Text"), 2)], at);
        assert_eq!((result, found.len()), (Ok(()), 1));
    });
}

#[test]
fn a_routines_error_ends_it() {
    Registry::with(|registry, at| {
        let number = units("Number");
        let (result, found) = registry.query(&[called(0, &number, 666), called(0, &number, 1)], at);
        assert_eq!((result, found.len()), (Err(NtStatus::UNSUCCESSFUL), 1));
    });
}

#[test]
fn values_are_written_where_the_entry_says() {
    Registry::with(|registry, at| {
        let [text, several, number, long] = ["Text", "Several", "Number", "Long"].map(units);
        let mut dword = 0_u32;
        let mut room = [7_u16; 6];
        let mut given = UnicodeString { length: 0, maximum_length: 12, buffer: room.as_mut_ptr() };
        let mut new = UnicodeString { length: 0, maximum_length: 0, buffer: null_mut() };
        let mut all = UnicodeString { length: 0, maximum_length: 0, buffer: null_mut() };
        let mut behind = [14_u32, 0, 0, 0];
        let mut bare = [(-6_i32) as u32, 0, 0];
        let entries = [
            direct(0, &number, &mut dword),
            direct(0, &text, &mut given),
            direct(0, &text, &mut new),
            direct(0, &several, &mut all),
            direct(0, &long, &mut behind),
            direct(0, &long, &mut bare),
        ];
        assert_eq!(registry.query(&entries, at), (Ok(()), Vec::new()));
        assert_eq!(dword, 7);
        assert_eq!((given.length, &room[..]), (10, &units("hello")[..]));
        // SAFETY: written just now; freed once.
        unsafe {
            assert_eq!((new.length, new.maximum_length, new.view()), (10, 12, Ok(wide!("hello"))));
            cm::hosted::free_string(NonNull::new(new.buffer).expect("a block"), 12);
            assert_eq!(all.view().map(WideStr::units), Ok(&units("one\0two\0")[..8]));
            cm::hosted::free_string(NonNull::new(all.buffer).expect("a block"), all.maximum_length.into());
        }
        assert_eq!(behind[..2], [6, ValueType::BINARY.0]);
        assert_eq!(
            behind[2..].iter().flat_map(|it| it.to_le_bytes()).take(6).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6]
        );
        assert_eq!(
            bare.iter().flat_map(|it| it.to_le_bytes()).take(6).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6]
        );
    });
}

#[test]
fn what_does_not_fit_is_told() {
    Registry::with(|registry, at| {
        let [text, long] = ["Text", "Long"].map(units);
        let mut room = [7_u16; 5];
        let mut given = UnicodeString { length: 0, maximum_length: 10, buffer: room.as_mut_ptr() };
        assert_eq!(registry.query(&[direct(0, &text, &mut given)], at).0, Err(NtStatus::BUFFER_TOO_SMALL));
        assert_eq!((given.length, room), (0, [7; 5]));
        for size in [13_i32, -5, 0] {
            let mut short = [size as u32, 7, 7, 7];
            assert_eq!(
                registry.query(&[direct(0, &long, &mut short)], at).0,
                Err(NtStatus::BUFFER_TOO_SMALL)
            );
            assert_eq!(short, [size as u32, 7, 7, 7]);
        }
    });
}

#[test]
fn defaults_stand_in_and_types_are_checked() {
    Registry::with(|registry, at| {
        let [missing, number] = ["Missing", "Number"].map(units);
        let default = units("default");
        let strings: Vec<u16> = "a\0bc\0\0".encode_utf16().collect();
        let with = |entry: KQueryEntry, kind: u32, data: *const c_void, length| KQueryEntry {
            default_type: kind,
            default_data: data,
            default_length: length,
            ..entry
        };
        let entries = [
            with(called(0, &missing, 1), 1, default.as_ptr().cast(), 0),
            with(called(0, &missing, 2), 7, strings.as_ptr().cast(), 0),
            with(called(0, &missing, 3), 3, default.as_ptr().cast(), 3),
            with(called(0, &missing, 4), 4, null(), 0),
            with(called(0, &missing, 5), 0, default.as_ptr().cast(), 3),
            with(called(0, &number, 6), 1, default.as_ptr().cast(), 0),
        ];
        let (result, found) = registry.query(&entries, at);
        assert_eq!(result, Ok(()));
        assert_eq!(
            found,
            [
                told("Missing", ValueType::SZ, bytes("default"), 1),
                told("Missing", ValueType::SZ, bytes("a"), 2),
                told("Missing", ValueType::SZ, bytes("bc"), 2),
                told("Missing", ValueType::BINARY, bytes("default")[..3].to_vec(), 3),
                told("Missing", ValueType::DWORD, Vec::new(), 4),
                told("Number", ValueType::DWORD, vec![7, 0, 0, 0], 6),
            ]
        );
        let mut dword = 0_u32;
        let checked = |kind: u32, to: &mut u32| with(direct(TYPECHECK, &number, to), kind << 24, null(), 0);
        assert_eq!(registry.query(&[checked(4, &mut dword)], at).0, Ok(()));
        assert_eq!(dword, 7);
        assert_eq!(registry.query(&[checked(1, &mut dword)], at).0, Err(NtStatus::OBJECT_TYPE_MISMATCH));
        let required = called(REQUIRED, &missing, 1);
        assert_eq!(registry.query(&[required], at).0, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
        assert_eq!(registry.query(&[entry(SUBKEY, &missing)], at).0, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    });
}

#[test]
fn contradictions_are_refused() {
    Registry::with(|registry, at| {
        let number = units("Number");
        let mut dword = 0_u32;
        let invalid = Err(NtStatus::INVALID_PARAMETER);
        let without_name = direct(0, &[], &mut dword);
        let both = KQueryEntry { routine: Some(routine), ..direct(0, &number, &mut dword) };
        let below = direct(SUBKEY, &number, &mut dword);
        for entry in [without_name, both, below, entry(SUBKEY, &[])] {
            assert_eq!(registry.query(&[entry], at).0, invalid, "{entry:?}");
        }
        assert_eq!(dword, 0);
        assert_eq!(RelativeTo::of(0x4000_0000), Err(NtStatus::INVALID_PARAMETER));
        assert_eq!(RelativeTo::of(0x8000_0001), Ok(RelativeTo::Services));
    });
}

#[test]
fn values_are_written_and_deleted_by_a_path() {
    Registry::with(|registry, at| {
        let place = (RelativeTo::DeviceMap, wide!("Serial"));
        let written =
            relative::write_value(&registry.names, place, wide!("a"), ValueType::DWORD, &[1; 4], at);
        assert_eq!(written, Ok(()));
        let key = relative::open(&registry.names, RelativeTo::DeviceMap, wide!("SERIAL"), at).expect("made");
        assert_eq!(
            key.with_value(wide!("A"), at, |kind, data| (kind, data.to_vec())),
            Ok((ValueType::DWORD, vec![1; 4]))
        );
        assert_eq!(relative::delete_value(&registry.names, place, wide!("a"), at), Ok(()));
        assert_eq!(
            relative::delete_value(&registry.names, place, wide!("a"), at),
            Err(NtStatus::OBJECT_NAME_NOT_FOUND)
        );
        let nowhere = (RelativeTo::Control, wide!("No\\Where"));
        let written =
            relative::write_value(&registry.names, nowhere, wide!("a"), ValueType::DWORD, &[1; 4], at);
        assert_eq!(written, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    });
}
