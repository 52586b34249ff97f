//! A reader that interrupted the writer on its own processor would wait for it for ever; `try_read` doesn't wait.
use sync::SeqLock;
use sync::irql::{Clock, Irql, PrcbLock};

pub fn f(time: &SeqLock<2, PrcbLock>, at: &Irql<Clock>) -> Option<[u64; 2]> {
    at.check();
    #[cfg(refused)]
    return Some(time.read(at));
    #[cfg(not(refused))]
    return time.try_read();
}
