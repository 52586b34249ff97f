//! What the rest of the executive shares and NT's own run-time library has: status codes, lists, counted strings.

pub mod list;
pub mod status;
pub mod unicode;
pub mod upcase;

pub use list::KListEntry;
pub use status::NtStatus;
pub use unicode::{Case, UnicodeString, WideBuffer, WideStr, WideString};

sync::nt_layout! {
    [] UnicodeString = "UNICODE_STRING" { length => "Length", maximum_length => "MaximumLength", buffer => "Buffer", }
}
