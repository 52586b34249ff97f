//! What the rest of the executive shares and NT's own run-time library has: so far, status codes.

pub mod status;

pub use status::NtStatus;
