//! Small helpers that several modules use.
//!
//! - `backoff`: delays between attempts · `rfc3339`: times as text · `sleep`: sleeping until an optional deadline

pub mod backoff;
pub mod rfc3339;
pub(crate) mod sleep;
