//! Random paths against a tree of a few lines: what each leads to or which status it has, in either case, through links (circles among
//! them) and through what parses paths itself, from `\` or from an object; names are gone at once, objects with their last reference; an
//! object's path is where it is. In the end nothing is kept.

#[path = "../../fuzz/names.rs"]
mod fuzz;
#[path = "ob_names/model.rs"]
mod model;

use kernel::ob::{self, Namespace, Path, Permanence, SymbolicLink, hosted};
use kernel::rtl::{Case, NtStatus, WideStr, WideString};
use kernel::wide;
use model::{Kind, Leaf, Model, Step};
use proptest::prelude::*;
use sync::irql::{Irql, Passive};

const STEPS: usize = if cfg!(miri) { 60 } else { 600 };
const CASES: u32 = if cfg!(miri) { 1 } else { 150 };

fn at_passive(f: impl FnOnce(&mut Irql<Passive>)) {
    // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
    unsafe { Irql::<Passive>::with(f) }
}

fn path() -> impl Strategy<Value = String> {
    let component = prop::sample::select(vec!["a", "A", "b", "ä", "Ä", "to", "a", "b", ""]);
    let inner = prop::collection::vec(component, 0..4);
    let leading = prop::bool::weighted(0.9);
    (leading, inner).prop_map(|(leading, parts)| {
        // Mostly well-formed: an empty component is one in nine.
        format!("{}{}", if leading { "\\" } else { "" }, parts.join("\\"))
    })
}

fn step() -> impl Strategy<Value = Step> {
    let case = prop::sample::select(vec![Case::Sensitive, Case::Insensitive]);
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        2 => path().prop_map(Kind::Link),
        2 => Just(Kind::Leaf),
        1 => Just(Kind::Parser),
    ];
    let wanted = prop::option::of(0..4_usize);
    let root = prop::option::weighted(0.2, any::<prop::sample::Index>());
    prop_oneof![
        5 => (root.clone(), path(), case.clone(), kind, any::<bool>())
            .prop_map(|(root, path, case, kind, stays)| Step::Make { root, path, case, kind, stays }),
        8 => (root, path(), case, wanted)
            .prop_map(|(root, path, case, wanted)| Step::Open { root, path, case, wanted }),
        2 => any::<prop::sample::Index>().prop_map(Step::MakeTemporary),
        1 => any::<prop::sample::Index>().prop_map(Step::Enter),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn paths_lead_where_a_tree_says(steps in prop::collection::vec(step(), STEPS)) {
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

/// Removes NT's own names, so that nothing is left.
fn end(namespace: Namespace, at: &mut Irql<Passive>) {
    model::make_all_temporary(&namespace, at);
    drop(namespace);
    while hosted::work(at) {}
    assert_eq!(hosted::blocks(), 0, "memory was kept");
}

#[test]
fn a_new_tree_has_nts_names() {
    at_passive(|at| {
        let namespace = Namespace::new(at).expect("memory");
        for name in ["\\??", "\\Device", "\\Driver", "\\BaseNamedObjects", "\\ObjectTypes", "\\KernelObjects"]
        {
            let name = WideString::of_text(name).expect("memory");
            let directory = namespace.open_as::<ob::Directory>(Path::new(&name), at).expect("a directory");
            assert!(directory.is_permanent());
            assert!(directory.path(at).expect("memory").equals(&name, Case::Sensitive));
        }
        let global =
            namespace.open_as::<ob::Directory>(Path::new(wide!("\\dosdevices")), at).expect("a link to it");
        assert!(global.path(at).expect("memory").equals(wide!("\\??"), Case::Sensitive));
        let link = namespace.open_as::<SymbolicLink>(Path::new(wide!("\\DosDevices")), at).expect("the link");
        assert_eq!(link.target(), wide!("\\??"));
        for name in [
            wide!("\\ObjectTypes\\Type"),
            wide!("\\ObjectTypes\\Directory"),
            wide!("\\ObjectTypes\\SymbolicLink"),
        ] {
            let type_ = namespace.open_as::<ob::namespace::TypeObject>(Path::new(name), at).expect("a type");
            let (_, last) = name.strip_first(92).unwrap().split_at_first(92);
            assert!(WideString::of_text(type_.get().name()).unwrap().equals(last.unwrap(), Case::Sensitive));
        }
        drop((global, link));
        end(namespace, at);
    });
}

#[test]
fn a_refused_tree_keeps_nothing() {
    at_passive(|at| {
        let made = hosted::refusing(|| Namespace::new(at).map(drop));
        assert_eq!(made, Err(NtStatus::INSUFFICIENT_RESOURCES));
        assert_eq!(hosted::blocks(), 0);
        let namespace = Namespace::new(at).expect("memory");
        let path = Path::new(wide!("\\Device\\New"));
        let made = hosted::refusing(|| namespace.make_directory(path, Permanence::Permanent, at).map(drop));
        assert_eq!(made, Err(NtStatus::INSUFFICIENT_RESOURCES));
        let found = namespace.open(path, None, None, at).map(drop);
        assert_eq!(found, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
        end(namespace, at);
    });
}

#[test]
fn as_many_links_as_allowed_are_followed_and_no_more() {
    at_passive(|at| {
        let namespace = Namespace::new(at).expect("memory");
        let leaf = ob::create(Leaf::new(1), at).expect("memory").upcast();
        let name = |number: u32| WideString::of_text(&format!("\\l{number}")).expect("memory");
        namespace.enter(Path::new(&name(0)), &leaf, Permanence::Permanent, at).expect("entered");
        for number in 1..=40 {
            let target = name(number - 1);
            let made = namespace.make_link(Path::new(&name(number)), &target, Permanence::Permanent, at);
            assert!(made.is_ok());
            let found = namespace.open(Path::new(&name(number)), None, None, at);
            match number {
                ..=32 => assert!(found.expect("followed").is(&leaf)),
                _ => assert_eq!(found.map(drop), Err(NtStatus::OBJECT_NAME_NOT_FOUND), "{number}"),
            }
        }
        drop(leaf);
        end(namespace, at);
    });
}

#[test]
fn a_directory_is_not_beneath_itself() {
    at_passive(|at| {
        let namespace = Namespace::new(at).expect("memory");
        let outer = ob::create(ob::Directory::new(), at).expect("memory");
        let inner = ob::create(ob::Directory::new(), at).expect("memory");
        let (outer, inner) = (outer.upcast(), inner.upcast());
        let path = |root| Path { root: Some(root), ..Path::new(wide!("x")) };
        let enter = |root, object, at: &mut Irql<Passive>| {
            namespace.enter(path(root), object, Permanence::Permanent, at)
        };
        assert_eq!(enter(&outer, &outer, at), Err(NtStatus::INVALID_PARAMETER));
        assert_eq!(enter(&outer, &inner, at), Ok(()));
        assert_eq!(enter(&inner, &outer, at), Err(NtStatus::INVALID_PARAMETER));
        // The outermost has no name, and is above all.
        let root = namespace.root().clone().upcast();
        assert_eq!(enter(&root, &outer, at), Ok(()));
        assert_eq!(enter(&inner, &root, at), Err(NtStatus::INVALID_PARAMETER));
        assert!(outer.path(at).expect("memory").equals(wide!("\\x"), Case::Sensitive));
        inner.make_temporary(at);
        outer.make_temporary(at);
        drop((root, inner, outer));
        end(namespace, at);
    });
}

#[test]
fn what_a_link_makes_too_long_is_told() {
    at_passive(|at| {
        let namespace = Namespace::new(at).expect("memory");
        let long = vec![0x41; WideString::MOST];
        let target = WideStr::new(&long);
        namespace
            .make_link(Path::new(wide!("\\l")), target, Permanence::Permanent, at)
            .expect("just short enough");
        let found = namespace.open(Path::new(wide!("\\l\\a")), None, None, at).map(drop);
        assert_eq!(found, Err(NtStatus::NAME_TOO_LONG));
        let found = namespace.open(Path::new(wide!("\\l")), None, None, at).map(drop);
        assert_eq!(found, Err(NtStatus::OBJECT_PATH_SYNTAX_BAD), "it doesn't lead from the root");
        let made =
            namespace.make_link(Path::new(wide!("\\m")), wide!(""), Permanence::Permanent, at).map(drop);
        assert_eq!(made, Err(NtStatus::INVALID_PARAMETER));
        end(namespace, at);
    });
}

/// The fuzz target's corpus, and random bytes.
#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn whatever_bytes_are_paths() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/names");
    let files: Vec<_> = std::fs::read_dir(corpus).expect("the corpus").collect();
    assert!(files.len() >= 3);
    for file in files {
        fuzz::names(&std::fs::read(file.expect("its entry").path()).expect("its file"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_paths(operations in prop::collection::vec((any::<u8>(), path()), 0..STEPS / 10)) {
        let mut input = Vec::new();
        for (what, path) in operations {
            let units: Vec<u16> = path.encode_utf16().collect();
            input.extend([what, units.len() as u8]);
            input.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        }
        fuzz::names(&input);
    }
}
