//! Property tests: random operations against a reference model of a few lines. A file under `tests/` is one subject.

pub mod arena;
pub mod dispatcher_rules;
pub mod process_holds;
pub mod process_machine;
pub mod process_model;
pub mod process_rules;
