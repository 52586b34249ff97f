//! Who is inside of an object is waited for by its disconnect: below DISPATCH a thread could be switched away from there.
use sync::disconnect::Slot;
use sync::irql::{Dispatch, Irql, Passive};

pub fn f(slot: &Slot<u32>, at: &mut Irql<Passive>) -> u32 {
    let mut raised = at.raise::<Dispatch>();
    let inside = slot.enter(&mut raised);
    #[cfg(refused)]
    drop(raised);
    inside.map_or(0, |object| *object)
}
