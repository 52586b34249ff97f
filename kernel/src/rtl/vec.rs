//! Growth of a `Vec` that says so when there is no memory, and has no code that would stop for want of it.
//!
//! `Vec`'s own `push`, `insert` and `extend` may grow, also behind a `try_reserve`, as far as the compiler knows.

extern crate alloc;

use alloc::vec::Vec;

use super::NtStatus;

/// `item` at the end.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES: nothing is changed, `item` is gone.
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), NtStatus> {
    list.try_reserve(1).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    let slot = list.spare_capacity_mut().first_mut().ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
    slot.write(item);
    // SAFETY: there was room for one more, which was written just now.
    unsafe { list.set_len(list.len() + 1) };
    Ok(())
}

/// `item` in front of what is at `place`, or at the end.
///
/// # Errors
/// As [`push`].
///
/// # Panics
/// If `place` is behind the end.
pub fn insert<T>(list: &mut Vec<T>, place: usize, item: T) -> Result<(), NtStatus> {
    push(list, item)?;
    list[place..].rotate_right(1);
    Ok(())
}

/// `items` at the end.
///
/// # Errors
/// As [`push`].
pub fn append<T: Copy>(list: &mut Vec<T>, items: &[T]) -> Result<(), NtStatus> {
    list.try_reserve(items.len()).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    let count = list.spare_capacity_mut().iter_mut().zip(items).map(|(slot, item)| slot.write(*item)).count();
    // SAFETY: so many were written, one behind the other from the end on.
    unsafe { list.set_len(list.len() + count) };
    Ok(())
}

/// A copy of `items`, with no more room than for them.
///
/// # Errors
/// As [`push`].
pub fn copy<T: Copy>(items: &[T]) -> Result<Vec<T>, NtStatus> {
    let mut list = Vec::new();
    list.try_reserve_exact(items.len()).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    append(&mut list, items)?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_where_they_are_told() {
        let mut list = copy(&[1, 2, 3]).expect("memory");
        insert(&mut list, 1, 7).expect("memory");
        insert(&mut list, 4, 8).expect("memory");
        push(&mut list, 9).expect("memory");
        append(&mut list, &[4, 5]).expect("memory");
        assert_eq!(list, [1, 7, 2, 3, 8, 9, 4, 5]);
    }
}
