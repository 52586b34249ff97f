//! What must hold for whatever bytes are taken for a security descriptor. A check panics when it does not.
//!
//! Used by the fuzz target `descriptors`, and by tests/props/tests/se_descriptors.rs: on the committed corpus, and on random input.

use kernel::rtl::NtStatus;
use kernel::se::descriptor::KSecurityDescriptor;
use kernel::se::{Acl, AclBuffer, Descriptor, DescriptorBuffer, Sid};

/// The input is a self-relative descriptor, or not; a list, or not; a SID, or not.
pub(crate) fn descriptors(input: &[u8]) {
    if let Some(sid) = Sid::parse(input) {
        check_sid(sid, input);
    }
    if let Some(acl) = Acl::parse(input) {
        check_list(acl);
    }
    match Descriptor::parse(input) {
        Ok(descriptor) => check_descriptor(&descriptor),
        Err(status) => assert_eq!(status, NtStatus::INVALID_SECURITY_DESCR),
    }
}

fn check_sid(sid: &Sid, input: &[u8]) {
    assert_eq!(sid.bytes(), &input[..sid.bytes().len()]);
    assert_eq!(sid.sub_authorities().count() * 4 + 8, sid.bytes().len());
    assert!(sid.to_string().starts_with("S-1-"));
}

fn check_list(acl: &Acl) {
    assert_eq!(acl.aces().count(), usize::from(acl.count()));
    let bytes: usize = acl.aces().map(|ace| ace.bytes().len()).sum();
    assert!(bytes + 8 <= acl.bytes().len());
    let copy = AclBuffer::of(acl).expect("memory");
    assert!(copy.aces().eq(acl.aces()), "a copy has other entries");
    assert_eq!(Acl::parse(copy.bytes()).map(Acl::bytes), Some(copy.bytes()));
    let _ = format!("{acl:?}");
}

fn check_descriptor(descriptor: &Descriptor<'_>) {
    [descriptor.sacl, descriptor.dacl].into_iter().flatten().for_each(check_list);
    let buffer = DescriptorBuffer::of(descriptor).expect("memory");
    assert_eq!(buffer.view(), *descriptor, "a copy says something else");
    assert_eq!(Descriptor::parse(buffer.bytes()).as_ref(), Ok(descriptor));
    let absolute = descriptor.absolute();
    // SAFETY: it leads to the parts of the view, or in the second case to a buffer's.
    let (through_pointers, through_offsets) = unsafe {
        (KSecurityDescriptor::view(&absolute), KSecurityDescriptor::view(buffer.bytes().as_ptr().cast()))
    };
    assert_eq!(through_pointers.as_ref(), Ok(descriptor));
    assert_eq!(through_offsets.as_ref(), Ok(descriptor));
}
