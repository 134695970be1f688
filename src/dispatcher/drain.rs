//! Drains a server, and cancels a drain.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{DispatchError, Dispatcher};

/// State of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Drain {
    /// Whether the server takes no new connections.
    pub draining: bool,
    /// Connections that are open.
    pub connections: u64,
}

impl Dispatcher {
    /// Makes the server take no new connections, and close the present ones spread over `time`, at most an hour.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn drain(&self, time: Duration) -> Result<Drain, DispatchError> {
        let body = json!({"seconds": time.as_secs_f64()}).to_string();
        let request = self.request(Method::POST, self.url(&["drain"])?).header("content-type", "application/json");
        self.call(request.body(body)).await
    }

    /// Cancels a drain: the server takes new connections again, and closes no further ones.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn cancel_drain(&self) -> Result<Drain, DispatchError> {
        self.call(self.request(Method::DELETE, self.url(&["drain"])?)).await
    }

    /// Gets the state of a drain.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn drain_state(&self) -> Result<Drain, DispatchError> {
        self.call(self.request(Method::GET, self.url(&["drain"])?)).await
    }
}
