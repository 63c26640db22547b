//! The front as its clients see it: requests in, statuses, bodies and events out.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper's panic fails the test that called it"
)]

mod behaviors;
mod engine;
mod fuzz;
mod instances;
mod model;
mod openapi;
mod parameters;
mod protection;
mod serving;
mod transcripts;
mod world;
