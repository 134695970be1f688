//! Sleeps until a deadline that may be missing.

use std::future::pending;

use tokio::time::{Instant, sleep_until};

/// Sleeps until `deadline`; `None` never completes.
pub async fn sleep_until_optional(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
