//! The keys that drivers expect to be there.
//!
//! Sources: WDK, "Registry Trees and Keys for Devices and Drivers", `RtlQueryRegistryValues`.

use sync::irql::{Irql, Passive};

use super::key::{KEY_ALL_ACCESS, KEY_READ, Key};
use super::path::{self, Creation, LINK_VALUE};
use super::value::ValueType;
use crate::ob::{Body, Namespace, Path};
use crate::rtl::{NtStatus, WideStr, vec};
use crate::se::acl::{AceFlags, AceKind};
use crate::se::descriptor::{Control, Parts};
use crate::se::sid::known;
use crate::se::{AclBuffer, Descriptor};
use crate::wide;

/// Each behind what it is below.
const KEYS: &[&WideStr] = &[
    wide!("\\Registry\\Machine"),
    wide!("\\Registry\\Machine\\Hardware"),
    wide!("\\Registry\\Machine\\Hardware\\Description"),
    wide!("\\Registry\\Machine\\Hardware\\DeviceMap"),
    wide!("\\Registry\\Machine\\Hardware\\ResourceMap"),
    wide!("\\Registry\\Machine\\Software"),
    wide!("\\Registry\\Machine\\Software\\Microsoft"),
    wide!("\\Registry\\Machine\\Software\\Microsoft\\Windows NT"),
    wide!("\\Registry\\Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion"),
    wide!("\\Registry\\Machine\\System"),
    wide!("\\Registry\\Machine\\System\\Select"),
    wide!("\\Registry\\Machine\\System\\ControlSet001"),
    wide!("\\Registry\\Machine\\System\\ControlSet001\\Control"),
    wide!("\\Registry\\Machine\\System\\ControlSet001\\Control\\Class"),
    wide!("\\Registry\\Machine\\System\\ControlSet001\\Enum"),
    wide!("\\Registry\\Machine\\System\\ControlSet001\\Services"),
    wide!("\\Registry\\User"),
    wide!("\\Registry\\User\\.Default"),
];

const CONTROL_SET: &WideStr = wide!("\\Registry\\Machine\\System\\ControlSet001");

/// Says who may do what with `root` and all that is made below it: the system and administrators everything, others read.
fn secure(root: &Key, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let mut dacl = AclBuffer::new()?;
    for (mask, sid) in [
        (KEY_ALL_ACCESS, &known::LOCAL_SYSTEM),
        (KEY_ALL_ACCESS, &known::ADMINISTRATORS),
        (KEY_READ, &known::WORLD),
    ] {
        dacl.push(AceKind::Allow, AceFlags::CONTAINER_INHERIT, mask, sid)?;
    }
    let descriptor = Descriptor {
        control: Control::DACL_PRESENT,
        owner: Some(&known::ADMINISTRATORS),
        group: Some(&known::LOCAL_SYSTEM),
        dacl: Some(&dacl),
        ..Descriptor::default()
    };
    let parts = Parts::OWNER.with(Parts::GROUP).with(Parts::DACL);
    root.security.set(parts, descriptor, Key::object_type().any().mapping(), at)
}

/// The root `\Registry` and the keys that are always there, in `names`.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; what was made until then is there.
pub fn create_standard(names: &Namespace, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    names.add_type(Key::object_type().any(), at)?;
    let root = Key::new_root(names, Path::new(wide!("\\Registry")), at)?;
    secure(&root, at)?;
    for name in KEYS {
        path::create(names, Path::new(name), &mut Creation::new(), at)?;
    }
    let select = path::open(names, Path::new(wide!("\\Registry\\Machine\\System\\Select")), at)?;
    select.set_value(wide!("Current"), ValueType::DWORD, &1_u32.to_le_bytes(), at)?;
    let mut link = Creation { is_link: true, ..Creation::new() };
    let place = Path::new(wide!("\\Registry\\Machine\\System\\CurrentControlSet"));
    let current = path::create(names, place, &mut link, at)?;
    let mut target = alloc::vec::Vec::new();
    for unit in CONTROL_SET.units() {
        vec::append(&mut target, &unit.to_le_bytes())?;
    }
    current.set_value(LINK_VALUE, ValueType::LINK, &target, at)
}

extern crate alloc;
