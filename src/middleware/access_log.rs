//! A line in the log for everything that happens to clients.

use std::{
    collections::HashMap,
    error::Error,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Client, InboundMessage, Middleware, MiddlewareResult, Verdict};
use crate::{
    logging::{excerpt, sentence},
    message::{Seq, UserId},
};

/// Writes what happens to clients to the log (`tracing`, target `mesa::access`, level `info`): who comes from where, who
/// that turns out to be, what he is owed, when he goes, after how long and after how many messages. Never what was said, and
/// never a token.
///
/// Keeps some fifty bytes for each connection, for as long as it lasts.
#[derive(Debug, Default)]
pub struct AccessLog {
    open: Mutex<HashMap<u64, Open, RandomState>>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    said: u64,
}

const TARGET: &str = "mesa::access";

impl AccessLog {
    /// A log that has seen nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

fn shown(user: Option<&UserId>) -> String {
    user.map_or_else(|| "-".to_owned(), excerpt)
}

impl Middleware for AccessLog {
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        self.open.lock().insert(client.connection, Open { since: Instant::now(), said: 0 });
        let address = client.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        tracing::info!(target: TARGET, connection = client.connection, address, "connected");
        Ok(())
    }

    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        tracing::info!(target: TARGET, connection = client.connection, user = shown(client.user), "authenticated");
        Ok(())
    }

    fn on_redeliver_undeliverable_messages(&self, owed: RangeInclusive<Seq>, client: &Client<'_>) -> MiddlewareResult {
        let (first, last) = owed.into_inner();
        let (connection, user) = (client.connection, shown(client.user));
        tracing::info!(target: TARGET, connection, user, first, last, "is owed messages");
        Ok(())
    }

    fn on_message_received(&self, _: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Verdict> {
        if let Some(open) = self.open.lock().get_mut(&client.connection) {
            open.said += 1;
        }
        Ok(Verdict::Pass)
    }

    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        let open = self.open.lock().remove(&client.connection);
        let (lasted, messages) = open.map_or((Duration::ZERO, 0), |open| (open.since.elapsed(), open.said));
        let (connection, user, seconds) = (client.connection, shown(client.user), lasted.as_secs_f32());
        // What a client says when it goes is its own text: nothing in it may look like another line.
        let reason = excerpt(reason);
        tracing::info!(target: TARGET, connection, user, code, reason, seconds, messages, "disconnected");
        Ok(())
    }

    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        let user = shown(client.and_then(|client| client.user));
        let connection = client.map(|client| client.connection);
        tracing::info!(target: TARGET, connection, user, "error: {}", sentence(error));
    }
}
