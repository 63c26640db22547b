//! The OpenAI-compatible HTTP front.
//!
//! It knows an engine only as an [`EngineHandle`](stallfree_engine::EngineHandle), and models not at all. A request's way in: `routes/chat.rs`, the first
//! file of the main path.

mod answer;
mod choice;
mod computing;
mod config;
mod error;
mod generate;
mod input;
mod layers;
mod log_stats;
mod metrics;
mod protocol;
mod request;
mod ringer;
mod router;
mod routes;
mod serve;
mod sse;
mod state;

pub use config::{CorsConfig, DefaultSampling, Limits, ReportConfig, ServerConfig};
pub use error::ApiError;
pub use metrics::Metrics;
pub use ringer::ringer_on;
pub use router::router;
pub use serve::serve;
pub use state::AppState;
