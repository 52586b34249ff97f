//! What the rest of the executive shares and NT's own run-time library has: status codes, lists, counted strings, numbers and GUIDs as text,
//! times, bitmaps; and tables of a driver's elements: `links` first, then `balance`, `table` and the two kinds.

pub mod avl_table;
pub mod balance;
pub mod bitmap;
pub mod generic_table;
pub mod guid;
pub mod integer;
pub mod links;
pub mod list;
pub mod status;
pub mod table;
pub mod time;
pub mod unicode;
pub mod upcase;
pub mod vec;

pub use avl_table::AvlTable;
pub use bitmap::Bitmap;
pub use generic_table::GenericTable;
pub use guid::Guid;
pub use list::KListEntry;
pub use status::NtStatus;
pub use time::TimeFields;
pub use unicode::{Case, UnicodeString, WideBuffer, WideStr, WideString};

sync::nt_layout! {
    [] UnicodeString = "UNICODE_STRING" { length => "Length", maximum_length => "MaximumLength", buffer => "Buffer", }
}
