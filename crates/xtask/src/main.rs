//! The project's own checks: tidy, end-to-end tests, generated docs.

fn main() {}
