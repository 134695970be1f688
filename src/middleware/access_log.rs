//! Logs events of clients.

use std::{
    collections::HashMap,
    error::Error,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Client, Decision, InboundMessage, Middleware, MiddlewareResult};
use crate::{
    logging::{excerpt, sentence},
    message::{Seq, UserId},
};

/// Logs events of clients (`tracing`, target `mesa::access`, level `info`).
///
/// It logs connections with address, authentications with user, backlogs, errors, and disconnections with duration and
/// number of messages. It never logs the content of a message, nor a token. It uses about 50 bytes per open connection.
#[derive(Debug, Default)]
pub struct AccessLog {
    open: Mutex<HashMap<u64, OpenConnection, RandomState>>,
}

#[derive(Debug)]
struct OpenConnection {
    since: Instant,
    messages: u64,
}

const TARGET: &str = "mesa::access";

impl AccessLog {
    /// Creates an access log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

fn user_text(user: Option<&UserId>) -> String {
    user.map_or_else(|| "-".to_owned(), excerpt)
}

impl Middleware for AccessLog {
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        self.open.lock().insert(client.connection, OpenConnection { since: Instant::now(), messages: 0 });
        let address = client.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        tracing::info!(target: TARGET, connection = client.connection, address, "connected");
        Ok(())
    }

    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        tracing::info!(target: TARGET, connection = client.connection, user = user_text(client.user), "authenticated");
        Ok(())
    }

    fn on_redeliver_undeliverable_messages(
        &self,
        backlog: RangeInclusive<Seq>,
        client: &Client<'_>,
    ) -> MiddlewareResult {
        let (first, last) = backlog.into_inner();
        let (connection, user) = (client.connection, user_text(client.user));
        tracing::info!(target: TARGET, connection, user, first, last, "has a backlog");
        Ok(())
    }

    fn on_message_received(&self, _: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        if let Some(open) = self.open.lock().get_mut(&client.connection) {
            open.messages += 1;
        }
        Ok(Decision::Pass)
    }

    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        let open = self.open.lock().remove(&client.connection);
        let (duration, messages) = open.map_or((Duration::ZERO, 0), |open| (open.since.elapsed(), open.messages));
        let (connection, user, seconds) = (client.connection, user_text(client.user), duration.as_secs_f32());
        // A client chooses the close reason, which must not look like another log line.
        let reason = excerpt(reason);
        tracing::info!(target: TARGET, connection, user, code, reason, seconds, messages, "disconnected");
        Ok(())
    }

    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        let user = user_text(client.and_then(|client| client.user));
        let connection = client.map(|client| client.connection);
        tracing::info!(target: TARGET, connection, user, "error: {}", sentence(error));
    }
}
