//! Property tests: random operations against a reference model of a few lines. A file under `tests/` is one subject.
