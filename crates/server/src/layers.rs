//! What happens to every request before its route sees it.

pub(crate) mod auth;
pub(crate) mod cors;
pub(crate) mod count;
pub(crate) mod request_id;
