//! What must hold for whatever paths the namespace is given. A check panics when it does not.
//!
//! Used by the fuzz target `names`, and by tests/props/tests/ob_names.rs: on the committed corpus, and on random input.

use kernel::ob::{Directory, Namespace, ObRef, Path, Permanence, hosted};
use kernel::rtl::{Case, NtStatus, WideStr};
use sync::irql::{Irql, Passive};

/// The input is a list of operations: a byte that says which, a byte that says how many units follow, the units.
pub(crate) fn names(input: &[u8]) {
    // SAFETY: the thread is a processor at PASSIVE, and this is its only token.
    unsafe { Irql::<Passive>::with(|at| run(input, at)) }
}

fn run(mut input: &[u8], at: &mut Irql<Passive>) {
    let blocks = hosted::blocks();
    let namespace = Namespace::new(at).expect("memory");
    let mut made: Vec<ObRef> = vec![namespace.root().clone().upcast()];
    while let [what, length, rest @ ..] = input {
        let bytes = (2 * usize::from(*length)).min(rest.len() / 2 * 2);
        let (units, after) = rest.split_at(bytes);
        input = after;
        let units: Vec<u16> = units.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        operate(*what, WideStr::new(&units), &namespace, &mut made, at);
    }
    take_apart(&namespace, made, at);
    drop(namespace);
    while hosted::work(at) {}
    assert_eq!(hosted::blocks(), blocks, "memory was kept");
}

fn operate(what: u8, name: &WideStr, namespace: &Namespace, made: &mut Vec<ObRef>, at: &mut Irql<Passive>) {
    let case = if what & 0x80 == 0 { Case::Insensitive } else { Case::Sensitive };
    let root = (what & 0x40 != 0).then(|| made[usize::from(what & 7) % made.len()].clone());
    let path = Path { root: root.as_ref(), name, case };
    match what >> 3 & 7 {
        0..3 => {
            let entered = namespace.make_directory(path, Permanence::Temporary, at);
            check(entered.as_ref().map(|_| ()).map_err(|status| *status), true);
            if let Ok(directory) = entered {
                // It is found where it was entered, and where it says that it is.
                let found = namespace.open_as::<Directory>(path, at).expect("just entered");
                assert!(found.is(&directory));
                let entered = directory.upcast();
                // Where it is may have been cut off, and its path is from there.
                let is_inside = path.root.is_none_or(|root| is_where_it_says(root, namespace, at));
                assert!(!is_inside || is_where_it_says(&entered, namespace, at));
                made.push(entered);
            }
        }
        3 => {
            // It leads to the last component of its own path, or in a circle.
            let (_, target) = name.split_at_first(u16::from(b'>'));
            let made_link = namespace.make_link(path, target.unwrap_or(name), Permanence::Temporary, at);
            check(made_link.as_ref().map(|_| ()).map_err(|status| *status), true);
            made.extend(made_link.map(ObRef::upcast));
        }
        4 => made[usize::from(what & 7) % made.len()].make_temporary(at),
        _ => check(namespace.open(path, None, None, at).map(drop), false),
    }
}

/// Whether its path leads to it.
fn is_where_it_says(object: &ObRef, namespace: &Namespace, at: &mut Irql<Passive>) -> bool {
    let name = object.path(at).expect("memory");
    let path = Path { root: None, name: &name, case: Case::Sensitive };
    object.is(namespace.root()) || namespace.open(path, None, None, at).is_ok_and(|found| found.is(object))
}

/// No other status than those that the namespace's table has.
fn check(result: Result<(), NtStatus>, enters: bool) {
    let Err(status) = result else { return };
    let known = [
        NtStatus::OBJECT_PATH_SYNTAX_BAD,
        NtStatus::OBJECT_NAME_INVALID,
        NtStatus::OBJECT_PATH_NOT_FOUND,
        NtStatus::OBJECT_NAME_NOT_FOUND,
        NtStatus::OBJECT_TYPE_MISMATCH,
        NtStatus::NAME_TOO_LONG,
    ];
    let of_entering = [NtStatus::OBJECT_NAME_COLLISION, NtStatus::INVALID_PARAMETER];
    assert!(known.contains(&status) || enters && of_entering.contains(&status), "{status:?}");
}

/// Takes every name away that there is.
fn take_apart(namespace: &Namespace, made: Vec<ObRef>, at: &mut Irql<Passive>) {
    let mut left = vec![namespace.root().clone()];
    left.extend(made.into_iter().filter_map(|object| object.downcast::<Directory>().ok()));
    while let Some(directory) = left.pop() {
        let mut found = Vec::new();
        directory.for_each(at, |_, object| found.push(object.clone()));
        for object in found {
            object.make_temporary(at);
            left.extend(object.downcast::<Directory>());
        }
    }
}
