//! The registry against a list of keys of a few lines: where paths lead, in either case, through links and circles of them; what is created,
//! deleted, renamed; values; the order in which both are told; who watches is told of what it watches, once; whoever has a deleted key is told
//! so; what is refused changes nothing. In the end nothing is kept.

#[path = "cm_registry/model.rs"]
mod model;

use kernel::cm::{self, Change, Creation, Filter, Key, ValueType, key, path as paths, zw};
use kernel::ke::apc::ProcessorMode;
use kernel::ob::{self, Attributes, Caller, HandleTable, Namespace, Path, hosted};
use kernel::rtl::{Case, NtStatus, WideStr, WideString};
use kernel::wide;
use model::{Model, Step};
use proptest::prelude::*;
use sync::irql::{Irql, Passive};

const STEPS: usize = if cfg!(miri) { 60 } else { 400 };
const CASES: u32 = if cfg!(miri) { 1 } else { 120 };

fn at_passive(f: impl FnOnce(&mut Irql<Passive>)) {
    // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
    unsafe { Irql::<Passive>::with(f) }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "A", "b", "B", "c", "ä", "Ä", "long name"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    let separator = prop::sample::select(vec!["\\", "\\", "\\", "\\\\"]);
    let root = prop::sample::select(vec!["\\Registry", "\\REGISTRY"]);
    let end = prop::sample::select(vec!["", "", "", "\\"]);
    (root, prop::collection::vec((separator, name()), 0..4), end).prop_map(|(root, parts, end)| {
        let parts: String = parts.iter().map(|(separator, name)| format!("{separator}{name}")).collect();
        format!("{root}{parts}{end}")
    })
}

fn step() -> impl Strategy<Value = Step> {
    let data = prop::collection::vec(any::<u8>(), 0..6);
    let link = prop::option::weighted(0.15, path());
    prop_oneof![
        8 => (path(), link, prop::bool::weighted(0.05))
            .prop_map(|(path, link, refused)| Step::Create { path, link, refused }),
        6 => (path(), prop::bool::weighted(0.2)).prop_map(|(path, link)| Step::Open { path, link }),
        3 => any::<prop::sample::Index>().prop_map(Step::Delete),
        2 => (any::<prop::sample::Index>(), name()).prop_map(|(which, name)| Step::Rename(which, name)),
        5 => (any::<prop::sample::Index>(), name(), 0..12_u32, data, prop::bool::weighted(0.05))
            .prop_map(|(which, name, kind, data, refused)| Step::Set { which, name, kind, data, refused }),
        2 => (any::<prop::sample::Index>(), name()).prop_map(|(which, name)| Step::Unset(which, name)),
        2 => any::<prop::sample::Index>().prop_map(Step::Look),
        3 => (any::<prop::sample::Index>(), prop::sample::select(vec![1, 4, 5]), any::<bool>())
            .prop_map(|(which, filter, deep)| Step::Watch { which, filter, deep }),
        1 => any::<prop::sample::Index>().prop_map(Step::Unwatch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_registry_is_what_a_list_says(steps in prop::collection::vec(step(), STEPS)) {
        at_passive(|at| {
            let blocks = hosted::blocks();
            let mut model = Model::new(at);
            for step in &steps {
                model.step(step, at);
            }
            model.end(at);
            while hosted::work(at) {}
            assert_eq!(hosted::blocks(), blocks, "memory was kept");
        });
    }
}

/// Deletes what is below, then all names of the namespace's own.
fn end(names: Namespace, at: &mut Irql<Passive>) {
    let root = paths::open(&names, Path::new(wide!("\\Registry")), at).expect("the root");
    model::delete_below(&root, at);
    drop(root);
    model::end_names(&names, at);
    drop(names);
    while hosted::work(at) {}
    assert_eq!(hosted::blocks(), 0, "memory was kept");
}

#[test]
fn the_keys_that_drivers_expect_are_there() {
    at_passive(|at| {
        let names = Namespace::new(at).expect("memory");
        cm::create_standard(&names, at).expect("memory");
        let open = |name: &str, at: &mut Irql<Passive>| {
            let name = WideString::of_text(name).expect("memory");
            paths::open(&names, Path::new(&name), at)
        };
        let services = open("\\Registry\\Machine\\SYSTEM\\CurrentControlSet\\Services", at).expect("there");
        let same = open("\\registry\\machine\\system\\controlset001\\services", at).expect("there");
        assert!(services.is(&same), "by a link");
        let path = Key::full_name(&services, at).expect("memory");
        assert!(path.equals(wide!("\\Registry\\Machine\\System\\ControlSet001\\Services"), Case::Sensitive));
        assert_eq!(
            open("\\Registry\\Machine\\Nowhere\\Else", at).err(),
            Some(NtStatus::OBJECT_NAME_NOT_FOUND)
        );
        assert_eq!(Key::delete(&open("\\Registry", at).expect("there"), at), Err(NtStatus::CANNOT_DELETE));
        drop((services, same));
        end(names, at);
    });
}

#[test]
fn a_refused_registry_keeps_nothing() {
    at_passive(|at| {
        let names = Namespace::new(at).expect("memory");
        let made = hosted::refusing(|| cm::create_standard(&names, at));
        assert_eq!(made, Err(NtStatus::INSUFFICIENT_RESOURCES));
        cm::create_standard(&names, at).expect("memory");
        end(names, at);
    });
}

#[test]
fn handles_have_their_rights_and_their_watches() {
    at_passive(|at| {
        let names = Namespace::new(at).expect("memory");
        cm::create_standard(&names, at).expect("memory");
        let (mut table, kernel) = (HandleTable::new(), HandleTable::kernel());
        let path = Path::new(wide!("\\Registry\\Machine\\Software\\Subject"));
        let (mut creation, attributes) = (Creation::new(), Attributes::default());
        let made = zw::create(&table, &names, path, &mut creation, ob::AccessMask(0x8000), attributes, at);
        assert_eq!(made.err(), Some(NtStatus::ACCESS_DENIED));
        assert_eq!(paths::open(&names, path, at).err(), Some(NtStatus::OBJECT_NAME_NOT_FOUND), "gone again");
        let writes =
            zw::create(&table, &names, path, &mut creation, key::KEY_WRITE, attributes, at).expect("made");
        assert_eq!(creation.disposition, cm::Disposition::Created);
        let reads = zw::open(&table, &names, path, key::KEY_READ, attributes, None, at).expect("there");
        let all = zw::create(&table, &names, path, &mut creation, key::KEY_ALL_ACCESS, attributes, at)
            .expect("there");
        assert_eq!(creation.disposition, cm::Disposition::Opened);
        let caller = Caller { process: &table, kernel: &kernel, mode: ProcessorMode::User };
        let set = |handle, at: &mut Irql<Passive>| {
            zw::set_value(&caller, handle, wide!("v"), ValueType::DWORD, &[1; 4], at)
        };
        assert_eq!(set(reads, at), Err(NtStatus::ACCESS_DENIED));
        assert_eq!(set(writes, at), Ok(()));
        assert_eq!(zw::delete(&caller, reads, at), Err(NtStatus::ACCESS_DENIED));
        assert_eq!(zw::delete_value(&caller, writes, wide!("w"), at), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
        let change = ob::create(Change::new(), at).expect("memory");
        assert_eq!(zw::watch(&caller, writes, &change, Filter::ALL, false, at), Err(NtStatus::ACCESS_DENIED));
        assert_eq!(zw::watch(&caller, reads, &change, Filter::LAST_SET, false, at), Ok(()));
        assert_eq!(zw::rename(&caller, all, wide!("Other"), at), Ok(()));
        assert_eq!(
            (change.status(), change.event().is_signalled()),
            (NtStatus::PENDING, false),
            "not of values"
        );
        assert_eq!(set(writes, at), Ok(()));
        assert_eq!((change.status(), change.event().is_signalled()), (NtStatus::NOTIFY_ENUM_DIR, true));
        assert_eq!(zw::watch(&caller, all, &change, Filter::ALL, false, at), Ok(()));
        assert!(!change.event().is_signalled());
        for handle in [reads, writes, all] {
            assert_eq!(change.status(), NtStatus::PENDING);
            caller.close(handle, at).expect("open");
        }
        assert_eq!((change.status(), change.event().is_signalled()), (NtStatus::NOTIFY_CLEANUP, true));
        drop(change);
        table.end(at);
        end(names, at);
    });
}

#[test]
fn names_have_their_limits() {
    at_passive(|at| {
        let names = Namespace::new(at).expect("memory");
        cm::create_standard(&names, at).expect("memory");
        let software =
            paths::open(&names, Path::new(wide!("\\Registry\\Machine\\Software")), at).expect("there");
        let long = vec![0x41; 256];
        let make = |units: &[u16], at: &mut Irql<Passive>| {
            Key::create_subkey(&software, WideStr::new(units), &mut Creation::new(), at).map(drop)
        };
        assert_eq!(make(&long, at), Err(NtStatus::OBJECT_NAME_INVALID));
        assert_eq!(make(&[], at), Err(NtStatus::OBJECT_NAME_INVALID));
        assert_eq!(make(&[0x41, 0x5C], at), Err(NtStatus::OBJECT_NAME_INVALID));
        assert_eq!(make(&long[1..], at), Ok(()));
        let long = vec![0x41; 16_384];
        let set =
            |units, at: &mut Irql<Passive>| software.set_value(WideStr::new(units), ValueType::NONE, &[], at);
        assert_eq!(set(&long, at), Err(NtStatus::NAME_TOO_LONG));
        assert_eq!(set(&long[1..], at), Ok(()));
        let mut key = software.clone();
        let depth = std::iter::from_fn(|| {
            key = Key::create_subkey(&key, wide!("d"), &mut Creation::new(), at).ok()?;
            Some(())
        });
        assert_eq!(depth.count(), 510, "below two keys");
        drop((software, key));
        end(names, at);
    });
}
