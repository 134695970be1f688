//! Who writes to Alice: numbered messages, each answered before the next is sent.

use mesa::{
    dispatcher::{DispatchResult, Dispatcher},
    message::{Message, Recipients, UserId},
};
use serde_json::json;

use super::{server::Reach, tracker::Ledger};
use crate::error::Failure;

/// A backend that writes to one user.
pub struct Backend {
    dispatcher: Dispatcher,
    alice: UserId,
}

impl Backend {
    /// Of a server that runs.
    pub fn new(reach: &Reach) -> Result<Self, Failure> {
        let dispatcher = Dispatcher::new(&format!("http://{}", reach.address), &reach.api_key);
        Ok(Self {
            dispatcher: dispatcher.map_err(Failure::because)?,
            alice: UserId::new("alice").map_err(Failure::because)?,
        })
    }

    /// Sends the next `count` messages; each must be taken, and find Alice there or not as the server should know.
    pub async fn send(&self, ledger: &mut Ledger, count: u64, online: bool) -> Result<(), Failure> {
        for _ in 0..count {
            let n = ledger.sent + 1;
            let message = Message::new("GREETING", &json!({ "n": n })).map_err(Failure::because)?;
            let recipients = Recipients::Users(vec![self.alice.clone()]);
            let result = self.dispatcher.dispatch(&message, &recipients, &[]).await.map_err(Failure::because)?;
            ledger.sent = n;
            check(&result, online).map_err(|wrong| Failure::because(format!("message {n}: {wrong}")))?;
        }
        Ok(())
    }

    /// How many messages the server still owes her.
    pub async fn pending(&self) -> Result<u64, Failure> {
        Ok(self.dispatcher.user(&self.alice).await.map_err(Failure::because)?.pending)
    }

    /// Whether the server takes her for connected.
    pub async fn online(&self) -> Result<bool, Failure> {
        Ok(self.dispatcher.user(&self.alice).await.map_err(Failure::because)?.online)
    }
}

fn check(result: &DispatchResult, online: bool) -> Result<(), String> {
    if let Some(rejected) = result.rejected.first() {
        return Err(format!("the server did not take it ({})", rejected.reason));
    }
    let expected = if online { (1, 1, 0) } else { (1, 0, 1) };
    let found = (result.recipients, result.online, result.offline);
    if found != expected {
        return Err(format!(
            "the server says {} recipients, {} online and {} offline, where {expected:?} was expected",
            found.0, found.1, found.2
        ));
    }
    Ok(())
}
