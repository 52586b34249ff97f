//! A set of locks has one rank, and the ladder holds for it as for one lock.
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::{LockSet, SpinLock};

type Object = SpinLock<u32, ObjectLock>;

pub fn f(one: &Object, two: &Object, object: &mut Irql<ObjectLock>, dispatch: &mut Irql<Dispatch>) {
    #[cfg(refused)]
    drop(LockSet::lock(&mut [one, two], object));
    object.check();
    drop(LockSet::lock(&mut [one, two], dispatch));
}
