//! Small helpers that several modules use.

pub mod rfc3339;
