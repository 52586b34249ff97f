//! What the registry must be: a list of keys, each with the number of the one that it is below.

use kernel::cm::{Change, Creation, Disposition, Filter, Key, ValueType, path as paths};
use kernel::ob::{self, Directory, Namespace, ObRef, Path, hosted};
use kernel::rtl::{NtStatus, WideString};
use kernel::wide;
use proptest::sample::Index;
use sync::irql::{Irql, Passive};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create { path: String, link: Option<String>, refused: bool },
    Open { path: String, link: bool },
    Delete(Index),
    Rename(Index, String),
    Set { which: Index, name: String, kind: u32, data: Vec<u8>, refused: bool },
    Unset(Index, String),
    Look(Index),
    Watch { which: Index, filter: u32, deep: bool },
    Unwatch(Index),
}

struct Node {
    parent: Option<usize>,
    name: String,
    is_there: bool,
    /// Where it leads, once that is set.
    link: Option<Option<String>>,
    values: Vec<(String, u32, Vec<u8>)>,
    key: ObRef<Key>,
}

struct Watch {
    node: usize,
    filter: u32,
    deep: bool,
    status: NtStatus,
    change: ObRef<Change>,
}

pub(crate) struct Model {
    names: Namespace,
    /// The first is the root.
    nodes: Vec<Node>,
    watches: Vec<Watch>,
}

fn upper(name: &str) -> Vec<u16> {
    name.to_uppercase().encode_utf16().collect()
}

fn wide(text: &str) -> WideString {
    WideString::of_text(text).expect("memory")
}

fn bytes(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What is done with the last key of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Open,
    OpenLink,
    Create { link: bool },
}

impl Model {
    pub(crate) fn new(at: &mut Irql<Passive>) -> Self {
        let names = Namespace::new(at).expect("memory");
        let key = Key::new_root(&names, Path::new(wide!("\\Registry")), at).expect("memory");
        let root = Node {
            parent: None,
            name: "Registry".into(),
            is_there: true,
            link: None,
            values: Vec::new(),
            key,
        };
        Self { names, nodes: vec![root], watches: Vec::new() }
    }

    fn below(&self, node: usize) -> Vec<usize> {
        let mut found: Vec<usize> = (0..self.nodes.len())
            .filter(|it| self.nodes[*it].is_there && self.nodes[*it].parent == Some(node))
            .collect();
        found.sort_by_key(|it| upper(&self.nodes[*it].name));
        found
    }

    fn child(&self, node: usize, name: &str) -> Option<usize> {
        self.below(node).into_iter().find(|it| upper(&self.nodes[*it].name) == upper(name))
    }

    /// The key at a path's end; or the one that it is to be made below, and its name.
    fn resolve(&self, path: &str, goal: Goal) -> Result<Result<usize, (usize, String)>, NtStatus> {
        let mut path = path.to_owned();
        for _ in 0..=32 {
            let mut parts: Vec<&str> = path.split('\\').filter(|part| !part.is_empty()).collect();
            parts.remove(0);
            let mut node = 0;
            let mut again = None;
            for (at, part) in parts.iter().enumerate() {
                let is_last = at + 1 == parts.len();
                match (self.child(node, part), goal) {
                    (Some(found), _) => node = found,
                    (None, Goal::Create { .. }) if is_last => return Ok(Err((node, (*part).to_owned()))),
                    (None, _) => return Err(NtStatus::OBJECT_NAME_NOT_FOUND),
                }
                let stays = is_last && matches!(goal, Goal::OpenLink | Goal::Create { link: true });
                if let (Some(target), false) = (&self.nodes[node].link, stays) {
                    let target = target.as_ref().ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
                    let rest: String = parts[at + 1..].iter().map(|part| format!("\\{part}")).collect();
                    again = Some(format!("{target}{rest}"));
                    break;
                }
            }
            match again {
                Some(next) => path = next,
                None => return Ok(Ok(node)),
            }
        }
        Err(NtStatus::OBJECT_NAME_NOT_FOUND)
    }

    fn pick(&self, which: &Index) -> usize {
        which.index(self.nodes.len())
    }

    /// Whoever watches is told of a change of `node`.
    fn changed(&mut self, node: usize, what: u32) {
        let mut above = vec![node];
        while let Some(parent) = above.last().and_then(|it| self.nodes[*it].parent) {
            above.push(parent);
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.status == NtStatus::PENDING) {
            let is_meant = if watch.deep { above.contains(&watch.node) } else { watch.node == node };
            if is_meant && watch.filter & what != 0 {
                watch.status = NtStatus::NOTIFY_ENUM_DIR;
            }
        }
    }

    pub(crate) fn step(&mut self, step: &Step, at: &mut Irql<Passive>) {
        match step {
            Step::Create { path, link, refused } => self.create(path, link.as_deref(), *refused, at),
            Step::Open { path, link } => {
                let goal = if *link { Goal::OpenLink } else { Goal::Open };
                let wanted = self.resolve(path, goal).map(|found| found.expect("none is made"));
                let name = wide(path);
                let found = match link {
                    true => paths::open_link(&self.names, Path::new(&name), at),
                    false => paths::open(&self.names, Path::new(&name), at),
                };
                match (found, wanted) {
                    (Ok(found), Ok(wanted)) => {
                        assert!(found.is(&self.nodes[wanted].key), "{path}: another key")
                    }
                    (found, wanted) => assert_eq!(found.err(), wanted.err(), "{path}"),
                }
            }
            Step::Delete(which) => self.delete(self.pick(which), at),
            Step::Rename(which, name) => self.rename(self.pick(which), name, at),
            Step::Set { which, name, kind, data, refused } => {
                let node = self.pick(which);
                let mut set = || self.nodes[node].key.set_value(&wide(name), ValueType(*kind), data, at);
                let set = if *refused { hosted::refusing(&mut set) } else { set() };
                let it = &mut self.nodes[node];
                let wanted = if it.link.is_some() {
                    Err(NtStatus::ACCESS_DENIED)
                } else if !it.is_there {
                    Err(NtStatus::KEY_DELETED)
                } else if *refused {
                    Err(NtStatus::INSUFFICIENT_RESOURCES)
                } else {
                    Ok(())
                };
                assert_eq!(set, wanted);
                if set.is_ok() {
                    match it.values.iter_mut().find(|value| upper(&value.0) == upper(name)) {
                        Some(value) => (value.1, value.2) = (*kind, data.clone()),
                        None => it.values.push((name.clone(), *kind, data.clone())),
                    }
                    self.changed(node, 4);
                }
            }
            Step::Unset(which, name) => {
                let node = self.pick(which);
                let it = &mut self.nodes[node];
                let place = it.values.iter().position(|value| upper(&value.0) == upper(name));
                let wanted = match place {
                    _ if !it.is_there => Err(NtStatus::KEY_DELETED),
                    None => Err(NtStatus::OBJECT_NAME_NOT_FOUND),
                    Some(_) => Ok(()),
                };
                assert_eq!(it.key.delete_value(&wide(name), at), wanted);
                if let (Ok(()), Some(place)) = (wanted, place) {
                    it.values.remove(place);
                    self.changed(node, 4);
                }
            }
            Step::Look(which) => self.look(self.pick(which), at),
            Step::Watch { which, filter, deep } => {
                let node = self.pick(which);
                let change = ob::create(Change::new(), at).expect("memory");
                let watched = self.nodes[node].key.watch(&change, Filter(*filter), *deep, at);
                let wanted = if self.nodes[node].is_there { Ok(()) } else { Err(NtStatus::KEY_DELETED) };
                assert_eq!(watched, wanted);
                let status = if wanted.is_ok() { NtStatus::PENDING } else { NtStatus::SUCCESS };
                self.watches.push(Watch { node, filter: *filter, deep: *deep, status, change });
            }
            Step::Unwatch(which) if !self.watches.is_empty() => {
                let number = which.index(self.watches.len());
                let watch = &mut self.watches[number];
                self.nodes[watch.node].key.unwatch(&watch.change, at);
                if watch.status == NtStatus::PENDING {
                    watch.status = NtStatus::NOTIFY_CLEANUP;
                }
            }
            Step::Unwatch(_) => {}
        }
        for watch in &self.watches {
            assert_eq!(watch.change.status(), watch.status);
            let is_over = [NtStatus::NOTIFY_ENUM_DIR, NtStatus::NOTIFY_CLEANUP].contains(&watch.status);
            assert_eq!(watch.change.event().is_signalled(), is_over);
        }
    }

    fn create(&mut self, path: &str, link: Option<&str>, refused: bool, at: &mut Irql<Passive>) {
        let wanted = self.resolve(path, Goal::Create { link: link.is_some() });
        let mut creation = Creation { is_link: link.is_some(), ..Creation::new() };
        let name = wide(path);
        let mut make = || paths::create(&self.names, Path::new(&name), &mut creation, at);
        let made = if refused { hosted::refusing(&mut make) } else { make() };
        match (made, wanted) {
            (Ok(found), Ok(Ok(wanted))) => {
                assert!(found.is(&self.nodes[wanted].key), "{path}: another key");
                // The root isn't asked whether it is to be made.
                assert_eq!(creation.disposition, Disposition::Opened);
            }
            (Ok(key), Ok(Err((parent, name)))) => {
                assert_eq!(creation.disposition, Disposition::Created);
                let target = link.map(str::to_owned);
                if let Some(target) = &target {
                    key.set_value(wide!("SymbolicLinkValue"), ValueType::LINK, &bytes(target), at)
                        .expect("memory");
                }
                let values = target.iter().map(|it| ("SymbolicLinkValue".to_owned(), 6, bytes(it))).collect();
                let link = link.map(|_| target);
                self.nodes.push(Node { parent: Some(parent), name, is_there: true, link, values, key });
                self.changed(parent, 1);
                if link_is_set(self.nodes.last()) {
                    self.changed(self.nodes.len() - 1, 4);
                }
            }
            (Err(NtStatus::INSUFFICIENT_RESOURCES), Ok(Err(_))) => assert!(refused),
            (made, wanted) => assert_eq!(made.err(), wanted.err(), "{path}"),
        }
    }

    fn delete(&mut self, node: usize, at: &mut Irql<Passive>) {
        let it = &self.nodes[node];
        let wanted = if it.parent.is_none() {
            Err(NtStatus::CANNOT_DELETE)
        } else if !it.is_there {
            Err(NtStatus::KEY_DELETED)
        } else if !self.below(node).is_empty() {
            Err(NtStatus::CANNOT_DELETE)
        } else {
            Ok(())
        };
        assert_eq!(Key::delete(&it.key, at), wanted);
        if wanted.is_ok() {
            self.nodes[node].is_there = false;
            self.nodes[node].values.clear();
            for watch in self.watches.iter_mut().filter(|watch| watch.node == node) {
                if watch.status == NtStatus::PENDING {
                    watch.status = NtStatus::NOTIFY_CLEANUP;
                }
            }
            self.changed(self.nodes[node].parent.expect("not the root"), 1);
        }
    }

    fn rename(&mut self, node: usize, name: &str, at: &mut Irql<Passive>) {
        let it = &self.nodes[node];
        let wanted = match it.parent {
            None => Err(NtStatus::ACCESS_DENIED),
            Some(_) if !it.is_there => Err(NtStatus::KEY_DELETED),
            Some(parent) => match self.child(parent, name) {
                Some(other) if other != node => Err(NtStatus::OBJECT_NAME_COLLISION),
                _ => Ok(()),
            },
        };
        assert_eq!(Key::rename(&it.key, &wide(name), at), wanted);
        if wanted.is_ok() {
            self.nodes[node].name = name.to_owned();
            self.changed(self.nodes[node].parent.expect("not the root"), 1);
        }
    }

    /// All that a key says of itself.
    fn look(&self, node: usize, at: &mut Irql<Passive>) {
        let it = &self.nodes[node];
        if !it.is_there {
            assert_eq!(it.key.subkey_at(0, at, |_, _| ()), Err(NtStatus::KEY_DELETED));
            assert_eq!(it.key.with_value(wide!("a"), at, |_, _| ()), Err(NtStatus::KEY_DELETED));
            assert_eq!(Key::full_name(&it.key, at).err(), Some(NtStatus::KEY_DELETED));
            return;
        }
        let below = self.below(node);
        for (number, below) in (0..).zip(&below) {
            let wanted = &self.nodes[*below];
            let found = it.key.subkey_at(number, at, |name, key| (name.to_string(), key.is(&wanted.key)));
            assert_eq!(found, Ok((wanted.name.clone(), true)));
            assert!(it.key.subkey(&wide(&wanted.name.to_lowercase()), at).expect("there").is(&wanted.key));
        }
        let behind = it.key.subkey_at(below.len() as u32, at, |_, _| ());
        assert_eq!(behind, Err(NtStatus::NO_MORE_ENTRIES));
        for (number, value) in (0..).zip(&it.values) {
            let found =
                it.key.value_at(number, at, |name, kind, data| (name.to_string(), kind.0, data.to_vec()));
            assert_eq!(found.as_ref(), Ok(value));
            let found =
                it.key.with_value(&wide(&value.0.to_uppercase()), at, |kind, data| (kind.0, data.to_vec()));
            assert_eq!(found, Ok((value.1, value.2.clone())));
        }
        let behind = it.key.value_at(it.values.len() as u32, at, |_, _, _| ());
        assert_eq!(behind, Err(NtStatus::NO_MORE_ENTRIES));
        let mut path = String::new();
        let mut above = Some(node);
        while let Some(node) = above {
            path = format!("\\{}{path}", self.nodes[node].name);
            above = self.nodes[node].parent;
        }
        assert_eq!(Key::full_name(&it.key, at).expect("memory").to_string(), path);
    }

    pub(crate) fn end(mut self, at: &mut Irql<Passive>) {
        (0..self.nodes.len()).for_each(|node| self.look(node, at));
        let root = self.nodes[0].key.clone();
        self.nodes.clear();
        delete_below(&root, at);
        self.watches.clear();
        drop(root);
        end_names(&self.names, at);
    }
}

fn link_is_set(node: Option<&Node>) -> bool {
    node.is_some_and(|node| matches!(node.link, Some(Some(_))))
}

/// Deletes every key below `key`.
pub(crate) fn delete_below(key: &ObRef<Key>, at: &mut Irql<Passive>) {
    let mut left = vec![key.clone()];
    while let Some(last) = left.last().cloned() {
        match last.subkey_at(0, at, |_, below| below.clone()) {
            Ok(below) => left.push(below),
            Err(_) => {
                left.pop();
                let _ = Key::delete(&last, at);
            }
        }
    }
}

/// Takes every name away that a namespace has.
pub(crate) fn end_names(names: &Namespace, at: &mut Irql<Passive>) {
    let mut left = vec![names.root().clone()];
    while let Some(directory) = left.pop() {
        let mut found = Vec::new();
        directory.for_each(at, |_, object| found.push(object.clone()));
        for object in found {
            object.make_temporary(at);
            left.extend(object.downcast::<Directory>());
        }
    }
}
