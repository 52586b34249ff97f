//! A device's fields are the I/O manager's: what they lead to is relied upon.
#![no_std]
use kernel::io::objects::KDeviceObject;

pub fn f(device: &mut KDeviceObject) -> i8 {
    #[cfg(refused)]
    {
        device.stack_size = 7;
    }
    device.stack_size()
}
