//! Memory: so far what bring-up needs. The order is [`early`] (pages), [`layout`] (where things are), [`space`] (the kernel's
//! own page tables), [`stacks`].

pub mod early;
pub mod layout;
pub mod space;
pub mod stacks;
