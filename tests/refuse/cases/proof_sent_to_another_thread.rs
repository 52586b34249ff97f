//! The proof is about one processor.
use arch::service::NothingInService;
use sync::irql::{Irql, Passive};

pub fn f(at: &mut Irql<Passive>) {
    let proof: NothingInService = at.nothing_in_service();
    std::thread::scope(|s| {
        #[cfg(refused)]
        s.spawn(move || drop(proof));
        #[cfg(not(refused))]
        s.spawn(|| ());
    });
}
