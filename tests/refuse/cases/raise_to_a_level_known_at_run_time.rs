//! DEVICE is nine levels; which one is a value.
use sync::irql::{Device, DeviceLevel, Irql, Passive, Raised};

pub fn f(at: &mut Irql<Passive>, level: DeviceLevel) -> Raised<'_, Device> {
    #[cfg(refused)]
    return (at.raise::<Device>(), level).0;
    #[cfg(not(refused))]
    return at.raise_device(level);
}
