//! Errors of TLS settings.

/// TLS settings cannot be used; most often a file is missing, or key and certificate do not match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub(super) String);
