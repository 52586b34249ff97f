//! Answers in NT's structures: for each buffer from none to more than enough, what is written is the beginning of the whole answer, how long that
//! is is told, and which status it is follows from both.

use kernel::cm::info::{Answer, KeyClass, ValueClass};
use kernel::cm::{Creation, Key, ValueType};
use kernel::ob::{Namespace, Path, hosted};
use kernel::rtl::{NtStatus, WideString};
use kernel::wide;
use sync::irql::{Irql, Passive};

fn bytes(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Asks with buffers of each size. The first `fixed` bytes are there always, or nothing is. `skip` bytes are a time that isn't known.
fn check(
    what: &str,
    wanted: &[u8],
    (skip, fixed): (usize, usize),
    mut ask: impl FnMut(&mut [u8]) -> Result<Answer, NtStatus>,
) {
    for size in 0..wanted.len() + 3 {
        let mut buffer = vec![0xEE; size];
        let answer = ask(&mut buffer).expect("there");
        assert_eq!(answer.needed, wanted.len(), "{what} in {size}");
        let status = match size {
            _ if size < fixed => NtStatus::BUFFER_TOO_SMALL,
            _ if size < wanted.len() => NtStatus::BUFFER_OVERFLOW,
            _ => NtStatus::SUCCESS,
        };
        assert_eq!(answer.status, status, "{what} in {size}");
        if size >= fixed {
            let end = size.min(wanted.len());
            assert_eq!(buffer[skip..end], wanted[skip..end], "{what} in {size}");
            assert!(buffer[end..].iter().all(|byte| *byte == 0xEE), "{what} writes behind its end");
        } else {
            assert!(buffer.iter().all(|byte| *byte == 0xEE), "{what} writes though it is too small");
        }
    }
}

#[test]
fn each_answer_is_the_beginning_of_the_whole() {
    // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
    unsafe {
        Irql::<Passive>::with(|at| {
            let names = Namespace::new(at).expect("memory");
            let root = Key::new_root(&names, Path::new(wide!("\\Registry")), at).expect("memory");
            let class = WideString::of_text("a class").expect("memory");
            let mut creation = Creation { class: Some(class), ..Creation::new() };
            let key = Key::create_subkey(&root, wide!("Subject"), &mut creation, at).expect("memory");
            let plain = Key::create_subkey(&key, wide!("below"), &mut Creation::new(), at).expect("memory");
            key.set_value(wide!("odd"), ValueType::BINARY, &[1, 2, 3, 4, 5], at).expect("memory");
            key.set_value(wide!(""), ValueType::SZ, &bytes("x"), at).expect("memory");
            values(&key, at);
            keys(&key, &plain, at);
            for it in [&plain, &key] {
                Key::delete(it, at).expect("nothing is below it");
            }
            assert_eq!(
                key.query_value(wide!("odd"), ValueClass::Basic, &mut [], at),
                Err(NtStatus::KEY_DELETED)
            );
            let mut directories = vec![names.root().clone()];
            drop((root, key, plain));
            while let Some(directory) = directories.pop() {
                let mut found = Vec::new();
                directory.for_each(at, |_, object| found.push(object.clone()));
                for object in found {
                    object.make_temporary(at);
                    directories.extend(object.downcast());
                }
            }
            drop(names);
            while hosted::work(at) {}
            assert_eq!(hosted::blocks(), 0, "memory was kept");
        });
    }
}

fn values(key: &Key, at: &mut Irql<Passive>) {
    let (name, data) = (bytes("odd"), [1, 2, 3, 4, 5]);
    let full = |offset, padding: usize| {
        [words(&[0, 3, offset, 5, 6]), name.clone(), vec![0; padding], data.to_vec()].concat()
    };
    let answers = [
        (ValueClass::Basic, [words(&[0, 3, 6]), name.clone()].concat(), 12),
        (ValueClass::Full, full(28, 2), 20),
        (ValueClass::FullAlign64, full(32, 6), 20),
        (ValueClass::Partial, [words(&[0, 3, 5]), data.to_vec()].concat(), 12),
        (ValueClass::PartialAlign64, [words(&[3, 5]), data.to_vec()].concat(), 8),
    ];
    for (class, wanted, fixed) in answers {
        let what = format!("{class:?}");
        check(&what, &wanted, (0, fixed), |buffer| key.query_value(wide!("ODD"), class, buffer, at));
        check(&what, &wanted, (0, fixed), |buffer| key.query_value_at(0, class, buffer, at));
    }
    let unnamed = [words(&[0, 1, 20, 2, 0]), bytes("x")].concat();
    check("no name", &unnamed, (0, 20), |buffer| key.query_value(wide!(""), ValueClass::Full, buffer, at));
    assert_eq!(
        key.query_value(wide!("no"), ValueClass::Basic, &mut [], at),
        Err(NtStatus::OBJECT_NAME_NOT_FOUND)
    );
    assert_eq!(key.query_value_at(2, ValueClass::Basic, &mut [], at), Err(NtStatus::NO_MORE_ENTRIES));
}

fn keys(key: &kernel::ob::ObRef<Key>, plain: &kernel::ob::ObRef<Key>, at: &mut Irql<Passive>) {
    let (time, name, class) = (vec![0; 8], bytes("Subject"), bytes("a class"));
    let node = [time.clone(), words(&[0, 40, 14, 14]), name.clone(), vec![0; 2], class.clone()].concat();
    let full = words(&[0, 44, 14, 1, 10, 0, 2, 6, 5]);
    let answers = [
        (KeyClass::Basic, [time.clone(), words(&[0, 14]), name].concat(), (8, 16)),
        (KeyClass::Node, node, (8, 24)),
        (KeyClass::Full, [time.clone(), full, class].concat(), (8, 44)),
        (KeyClass::Name, [words(&[2 * 17]), bytes("\\Registry\\Subject")].concat(), (0, 4)),
    ];
    for (class, wanted, at_least) in answers {
        check(&format!("{class:?}"), &wanted, at_least, |buffer| Key::query(key, class, buffer, at));
    }
    let basic = [time.clone(), words(&[0, 10]), bytes("below")].concat();
    check("a key below", &basic, (8, 16), |buffer| key.query_subkey(0, KeyClass::Basic, buffer, at));
    assert_eq!(key.query_subkey(1, KeyClass::Basic, &mut [], at), Err(NtStatus::NO_MORE_ENTRIES));
    let node = [time, words(&[0, u32::MAX, 0, 10]), bytes("below")].concat();
    check("without a class", &node, (8, 24), |buffer| Key::query(plain, KeyClass::Node, buffer, at));
    let before = key.query_subkey(0, KeyClass::Full, &mut [0; 44], at);
    assert_eq!(before.map(|answer| answer.status), Ok(NtStatus::SUCCESS));
}
