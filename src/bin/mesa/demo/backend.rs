//! Dispatches the numbered messages of the demo to Alice, one after the other.

use mesa::{
    dispatcher::{DispatchResult, Dispatcher},
    message::{Message, Recipients, UserId},
};
use serde_json::json;

use super::{server::Endpoint, tracker::Tracker};
use crate::error::Failure;

/// A backend that dispatches to one user.
pub struct Backend {
    dispatcher: Dispatcher,
    alice: UserId,
}

impl Backend {
    /// Creates a backend of a running server.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Failure> {
        let dispatcher = Dispatcher::new(&format!("http://{}", endpoint.address), &endpoint.api_key);
        Ok(Self { dispatcher: dispatcher?, alice: UserId::new("alice").map_err(Failure::because)? })
    }

    /// Dispatches the next `count` messages. Each must be accepted, with Alice online or offline as expected.
    pub async fn send(&self, tracker: &mut Tracker, count: u64, online: bool) -> Result<(), Failure> {
        for _ in 0..count {
            let n = tracker.sent + 1;
            let message = Message::new("GREETING", &json!({ "n": n })).map_err(Failure::because)?;
            let recipients = Recipients::Users(vec![self.alice.clone()]);
            let result = self.dispatcher.dispatch(&message, &recipients, &[]).await?;
            tracker.sent = n;
            check(&result, online).map_err(|wrong| Failure::because(format!("message {n}: {wrong}")))?;
        }
        Ok(())
    }

    /// Returns the number of Alice's pending messages.
    pub async fn pending(&self) -> Result<u64, Failure> {
        Ok(self.dispatcher.user(&self.alice).await?.pending)
    }

    /// Returns whether Alice is online.
    pub async fn online(&self) -> Result<bool, Failure> {
        Ok(self.dispatcher.user(&self.alice).await?.online)
    }
}

fn check(result: &DispatchResult, online: bool) -> Result<(), String> {
    if let Some(rejected) = result.rejected.first() {
        return Err(format!("the server rejected it ({})", rejected.reason));
    }
    let expected = if online { (1, 1, 0) } else { (1, 0, 1) };
    let found = (result.recipients, result.online, result.offline);
    if found != expected {
        return Err(format!(
            "the server reported {} recipients, {} online and {} offline, where {expected:?} was expected",
            found.0, found.1, found.2
        ));
    }
    Ok(())
}
