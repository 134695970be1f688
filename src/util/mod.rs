//! Small helpers that several modules use.

#[doc(hidden)]
pub mod rfc3339;
