//! Objects that have a descriptor, keys: who opens one in somebody's name gets what that may have, the kernel everything; who makes one below
//! needs a right to, and owns it; what the kernel makes is secured as what is above it. An object without a descriptor is open to all.

use kernel::cm::key::{KEY_ALL_ACCESS, KEY_CREATE_SUB_KEY, KEY_READ, KEY_SET_VALUE, KEY_WRITE};
use kernel::cm::{self, Creation, Disposition, Key, path as paths, zw};
use kernel::ke::apc::ProcessorMode;
use kernel::ob::{
    self, AccessMask, Attributes, Body, Directory, HandleTable, Namespace, ObRef, Path, hosted,
};
use kernel::rtl::NtStatus;
use kernel::se::acl::{AceFlags, AceKind};
use kernel::se::descriptor::{Control, Parts};
use kernel::se::sid::known;
use kernel::se::token::{GroupAttributes, Options, Subject, TokenKind};
use kernel::se::{AclBuffer, Descriptor, Luid, Privileges, SidBuffer, Token};
use kernel::wide;
use sync::irql::{Irql, Passive};

static USER: SidBuffer = SidBuffer::new(5, &[21, 1000]);

struct World {
    names: Namespace,
    table: HandleTable,
    system: ObRef<Token>,
    user: ObRef<Token>,
}

impl World {
    fn with(test: impl FnOnce(&Self, &mut Irql<Passive>)) {
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                let names = Namespace::new(at).expect("memory");
                cm::create_standard(&names, at).expect("memory");
                let user = Token::new(&Options {
                    logon: Luid::SYSTEM,
                    kind: TokenKind::Primary,
                    user: &USER,
                    groups: &[(&known::WORLD, GroupAttributes::USUAL)],
                    privileges: Privileges::NONE,
                    enabled: Privileges::NONE,
                    owner: None,
                    primary_group: &known::USERS,
                    default_dacl: None,
                });
                let user = ob::create(user.expect("memory"), at).expect("memory");
                let system = ob::create(Token::system().expect("memory"), at).expect("memory");
                let this = Self { names, table: HandleTable::new(), system, user };
                test(&this, at);
                this.end(at);
            });
        }
    }

    /// The rights of a handle that `who` gets.
    fn open(
        &self,
        key: &ObRef<Key>,
        access: AccessMask,
        who: Option<&Token>,
        at: &mut Irql<Passive>,
    ) -> Result<AccessMask, NtStatus> {
        let subject = who.map(Subject::new);
        let attributes = Attributes::default();
        let handle = self.table.open_for(key.clone().upcast(), access, attributes, subject.as_ref(), at)?;
        let (granted, _) = self.table.query(handle, ProcessorMode::Kernel, at).expect("open");
        self.table.close(handle, ProcessorMode::Kernel, at).expect("open");
        Ok(granted)
    }

    fn end(mut self, at: &mut Irql<Passive>) {
        self.table.end(at);
        let root = paths::open(&self.names, Path::new(wide!("\\Registry")), at).expect("the root");
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
        drop(self);
        while hosted::work(at) {}
        assert_eq!(hosted::blocks(), 0, "memory was kept");
    }
}

#[test]
fn a_handle_has_what_its_opener_may_have() {
    World::with(|world, at| {
        let services = wide!("\\Registry\\Machine\\System\\CurrentControlSet\\Services");
        let key = paths::open(&world.names, Path::new(services), at).expect("there");
        let (system, user) = (Some(&*world.system), Some(&*world.user));
        let denied = Err(NtStatus::ACCESS_DENIED);
        assert_eq!(world.open(&key, KEY_ALL_ACCESS, system, at), Ok(KEY_ALL_ACCESS));
        assert_eq!(world.open(&key, AccessMask::GENERIC_READ, user, at), Ok(KEY_READ));
        assert_eq!(world.open(&key, AccessMask::MAXIMUM_ALLOWED, user, at), Ok(KEY_READ));
        for access in [KEY_WRITE, KEY_SET_VALUE, AccessMask::DELETE, AccessMask::WRITE_DAC, KEY_ALL_ACCESS] {
            assert_eq!(world.open(&key, access, user, at), denied, "{access:?}");
            assert_eq!(world.open(&key, access, None, at), Ok(access), "the kernel");
        }
        let attributes = Attributes::default();
        let subject = Subject::new(&world.user);
        let opened = zw::open(
            &world.table,
            &world.names,
            Path::new(services),
            KEY_WRITE,
            attributes,
            Some(&subject),
            at,
        );
        assert_eq!(opened.err(), Some(NtStatus::ACCESS_DENIED), "by its path");
    });
}

#[test]
fn who_makes_a_key_may_and_owns_it() {
    World::with(|world, at| {
        let software =
            paths::open(&world.names, Path::new(wide!("\\Registry\\Machine\\Software")), at).expect("there");
        let new = |creator: Option<&ObRef<Token>>| Creation { creator: creator.cloned(), ..Creation::new() };
        let made = Key::create_subkey(&software, wide!("User"), &mut new(Some(&world.user)), at);
        assert_eq!(made.err(), Some(NtStatus::ACCESS_DENIED));
        // The kernel makes a place, secured as what is above it; then the user may make keys there, and nothing else.
        let place =
            Key::create_subkey(&software, wide!("Place"), &mut new(None), at).expect("memory").upcast();
        let security = place.security().expect("keys have one");
        let read = security.with(at, |it| it.map(|it| it.dacl.map(|acl| acl.count()))).expect("as above it");
        assert_eq!(read, Some(3));
        let mut dacl = AclBuffer::new().expect("memory");
        dacl.push(AceKind::Allow, AceFlags::NONE, KEY_CREATE_SUB_KEY, &USER).expect("memory");
        let listed =
            Descriptor { control: Control::DACL_PRESENT, dacl: Some(&dacl), ..Descriptor::default() };
        let mapping = Key::object_type().any().mapping();
        security.set(Parts::DACL, listed, mapping, at).expect("memory");
        let owner = security.with(at, |it| it.and_then(|it| it.owner.map(SidBuffer::of)));
        assert_eq!(owner, Some(known::ADMINISTRATORS), "the other parts stay");
        let place = place.downcast::<Key>().expect("a key");
        let user = Some(&*world.user);
        assert_eq!(world.open(&place, KEY_READ, user, at), Err(NtStatus::ACCESS_DENIED));
        let mut creation = new(Some(&world.user));
        let path = Path::new(wide!("\\Registry\\Machine\\Software\\Place\\Mine"));
        let attributes = Attributes::default();
        let handle =
            zw::create(&world.table, &world.names, path, &mut creation, KEY_ALL_ACCESS, attributes, at);
        assert_eq!(
            (handle.is_ok(), creation.disposition),
            (true, Disposition::Created),
            "all of what it has made"
        );
        // The same request for a root, which nobody makes: what it says of the key before must not let it by the check.
        let root = Path::new(wide!("\\Registry"));
        let mut again = Creation { disposition: Disposition::Created, ..new(Some(&world.user)) };
        let refused =
            zw::create(&world.table, &world.names, root, &mut again, KEY_ALL_ACCESS, attributes, at);
        assert_eq!((refused.err(), again.disposition), (Some(NtStatus::ACCESS_DENIED), Disposition::Opened));
        let mine = place.subkey(wide!("Mine"), at).expect("made");
        let owner = mine
            .clone()
            .upcast()
            .security()
            .expect("one")
            .with(at, |it| it.and_then(|it| it.owner.map(SidBuffer::of)));
        assert_eq!(owner, Some(USER));
        // Its token has no list, so the new key has none, and is open to all.
        assert_eq!(world.open(&mine, KEY_ALL_ACCESS, user, at), Ok(KEY_ALL_ACCESS));
        // A generic right is that of keys.
        let mut dacl = AclBuffer::new().expect("memory");
        dacl.push(AceKind::Allow, AceFlags::NONE, AccessMask::GENERIC_READ, &USER).expect("memory");
        let listed =
            Descriptor { control: Control::DACL_PRESENT, dacl: Some(&dacl), ..Descriptor::default() };
        mine.clone().upcast().security().expect("one").set(Parts::DACL, listed, mapping, at).expect("memory");
        assert_eq!(world.open(&mine, KEY_READ, user, at), Ok(KEY_READ));
        assert_eq!(world.open(&mine, KEY_SET_VALUE, user, at), Err(NtStatus::ACCESS_DENIED));
        // With an empty list there is what an owner may.
        let empty = AclBuffer::new().expect("memory");
        let listed =
            Descriptor { control: Control::DACL_PRESENT, dacl: Some(&empty), ..Descriptor::default() };
        mine.clone().upcast().security().expect("one").set(Parts::DACL, listed, mapping, at).expect("memory");
        assert_eq!(world.open(&mine, KEY_READ, user, at), Err(NtStatus::ACCESS_DENIED));
        let by_owner = AccessMask::READ_CONTROL.with(AccessMask::WRITE_DAC);
        assert_eq!(world.open(&mine, AccessMask::MAXIMUM_ALLOWED, user, at), Ok(by_owner));
        let again = zw::create(&world.table, &world.names, path, &mut creation, KEY_READ, attributes, at);
        assert_eq!((again.err(), creation.disposition), (Some(NtStatus::ACCESS_DENIED), Disposition::Opened));
    });
}

#[test]
fn without_a_descriptor_it_is_open_to_all() {
    World::with(|world, at| {
        let directory = ob::create(Directory::new(), at).expect("memory").upcast();
        assert!(directory.security().is_none());
        let subject = Subject::new(&world.user);
        let access = AccessMask::GENERIC_ALL;
        let opened = world.table.open_for(directory, access, Attributes::default(), Some(&subject), at);
        assert!(opened.is_ok());
    });
}
