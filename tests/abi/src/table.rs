//! The list of structures.

use kernel::io::{layout, objects};
use sync::layout::{Field, NtLayout};

use crate::text::Text;

/// A structure, without its type.
struct Structure {
    name: &'static str,
    size: Option<usize>,
    fields: &'static [Field],
}

const fn of<T: NtLayout>() -> Structure {
    let size = if T::WHOLE { Some(size_of::<T>()) } else { None };
    Structure { name: T::NAME, size, fields: T::FIELDS }
}

const ALL: &[Structure] = &[
    of::<sync::raw::KSpinLock>(),
    of::<kernel::ke::object::Header>(),
    of::<kernel::ke::event::Event>(),
    of::<kernel::ke::semaphore::Semaphore>(),
    of::<kernel::ke::mutant::Mutant>(),
    of::<kernel::ke::timer::KTimer>(),
    of::<kernel::ke::dpc::KDpc>(),
    of::<kernel::ke::apc::KApc>(),
    of::<kernel::ke::queue::Queue>(),
    of::<kernel::ke::wait::block::WaitBlock>(),
    of::<kernel::ke::shared_data::SharedData>(),
    of::<sync::fast_mutex::RawFastMutex<kernel::ex::Wakeup>>(),
    of::<kernel::ex::Resource>(),
    of::<kernel::ex::work::KWorkItem>(),
    of::<kernel::mm::mdl::KMdl>(),
    of::<kernel::rtl::KListEntry>(),
    of::<kernel::rtl::UnicodeString>(),
    of::<kernel::rtl::TimeFields>(),
    of::<kernel::rtl::Guid>(),
    of::<kernel::rtl::bitmap::KBitmap>(),
    of::<kernel::rtl::bitmap::Run>(),
    of::<kernel::rtl::links::SplayLinks>(),
    of::<kernel::rtl::balance::BalancedLinks>(),
    of::<kernel::rtl::AvlTable>(),
    of::<kernel::rtl::GenericTable>(),
    of::<kernel::se::sid::KSid>(),
    of::<kernel::se::acl::KAcl>(),
    of::<kernel::se::acl::KAce>(),
    of::<kernel::se::descriptor::KSecurityDescriptor>(),
    of::<kernel::se::descriptor::KRelativeDescriptor>(),
    of::<kernel::se::Luid>(),
    of::<kernel::se::privilege::LuidAndAttributes>(),
    of::<kernel::se::privilege::KPrivilegeSet>(),
    of::<kernel::ob::GenericMapping>(),
    of::<kernel::cm::info::KKeyBasic>(),
    of::<kernel::cm::info::KKeyNode>(),
    of::<kernel::cm::info::KKeyFull>(),
    of::<kernel::cm::info::KValueBasic>(),
    of::<kernel::cm::info::KValueFull>(),
    of::<kernel::cm::info::KValuePartial>(),
    of::<kernel::cm::info::KValuePartialAlign64>(),
    of::<kernel::cm::query::KQueryEntry>(),
    of::<layout::IoStatus>(),
    of::<layout::KIrp>(),
    of::<layout::KStackLocation>(),
    of::<layout::ReadWrite>(),
    of::<layout::DeviceControl>(),
    of::<kernel::io::pnp::resources::KResourceDescriptor>(),
    of::<kernel::io::csq_raw::KCsq>(),
    of::<kernel::io::csq_raw::KCsqContext>(),
    of::<kernel::io::remove_lock::KRemoveLock>(),
    of::<objects::KDeviceQueue>(),
    of::<objects::KDeviceQueueEntry>(),
    of::<objects::KDeviceObject>(),
    of::<objects::KDriverObject>(),
    of::<objects::KFileObject>(),
];

const fn written() -> Text {
    let mut text = Text::new();
    let mut at = 0;
    while at < ALL.len() {
        let structure = &ALL[at];
        text = text.put("S ").put(structure.name);
        text = match structure.size {
            Some(size) => text.number(size),
            None => text.put(" ?"),
        };
        let mut number = 0;
        while number < structure.fields.len() {
            let field = &structure.fields[number];
            text = text.put("\nF ").put(field.first).put(" ").put(field.last);
            text = text.number(field.offset).number(field.size);
            number += 1;
        }
        text = text.put("\n");
        at += 1;
    }
    text
}

/// By its name the step finds it.
#[used]
static NT_LAYOUTS: Text = written();
