//! Batches pipelined messages into one commit, and holds their replies back until it is durable.
//!
//! Replies keep the order of their commands. A command that does not depend on the log executes at once; its reply is
//! queued after the pending ones.

use std::collections::HashSet;

use bytes::BytesMut;
use foldhash::fast::RandomState;

use super::{RespServer, encode, subscriber_queue::Subscriber};
use crate::{
    health::LogLimit,
    hub::{PreparedDispatch, StoreError},
    message::UserId,
};

/// Messages of one batch. A larger batch would delay other callers in the commit thread.
const MESSAGES_MAX: usize = 512;

/// Bytes of the commands of one batch, with at least one command.
const BYTES_MAX: usize = 256 << 10;

/// Uncommitted messages of one connection, and replies.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Replies that can be sent.
    ready: BytesMut,
    dispatches: Vec<PreparedDispatch>,
    /// For each message, the replies that follow its own.
    following: Vec<BytesMut>,
    bytes: usize,
    /// Bytes of all known replies, except those that follow the last message.
    reply_bytes: usize,
    /// Recipients of the messages.
    users: HashSet<UserId, RandomState>,
}

impl Batch {
    /// Returns the buffer for a reply that does not depend on the commit.
    pub(super) fn reply(&mut self) -> &mut BytesMut {
        self.following.last_mut().unwrap_or(&mut self.ready)
    }

    /// Adds a message.
    pub(super) fn push<'a>(
        &mut self,
        dispatch: PreparedDispatch,
        users: impl IntoIterator<Item = &'a UserId>,
        bytes: usize,
    ) {
        self.reply_bytes += self.reply().len();
        self.dispatches.push(dispatch);
        self.following.push(BytesMut::new());
        self.bytes += bytes;
        self.users.extend(users.into_iter().cloned());
    }

    pub(super) fn is_full(&self) -> bool {
        self.dispatches.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Counts the bytes of all known replies, ready or held back.
    pub(super) fn reply_bytes(&mut self) -> usize {
        self.reply_bytes + self.reply().len()
    }

    /// Tells whether there is an uncommitted message to this user.
    pub(super) fn has_user(&self, user: &UserId) -> bool {
        self.users.contains(user)
    }

    /// Commits the batch, and makes its replies ready once it is durable.
    pub(super) async fn commit(&mut self, server: &RespServer, by: &Subscriber) {
        if self.dispatches.is_empty() {
            return;
        }
        self.reply_bytes = 0;
        let dispatches = std::mem::take(&mut self.dispatches);
        let following = std::mem::take(&mut self.following).into_iter();
        self.bytes = 0;
        self.users.clear();
        match server.hub.commit(dispatches).await {
            Ok(batch) => {
                for (outcome, replies) in server.hub.outcomes(batch).zip(following) {
                    match outcome {
                        Ok(outcome) => encode::integer(&mut self.ready, server.accepted_count(&outcome, by)),
                        Err(error) => {
                            log_failure(&error);
                            write_store_error(&mut self.ready, &error);
                        }
                    }
                    self.ready.unsplit(replies);
                }
            }
            Err(error) => {
                log_failure(&error);
                for replies in following {
                    write_store_error(&mut self.ready, &error);
                    self.ready.unsplit(replies);
                }
            }
        }
    }

    /// Takes the replies that can be sent.
    pub(super) fn take_replies(&mut self) -> BytesMut {
        debug_assert!(self.dispatches.is_empty(), "a reply was taken before an earlier one was ready");
        self.ready.split()
    }
}

/// Limits log lines: a lasting cause fails every message.
static FAILED: LogLimit = LogLimit::new();

/// Logs that messages of a Dispatcher were rejected, once per interval.
pub(super) fn log_failure(error: &StoreError) {
    if let Some(suppressed) = FAILED.due("dispatcher") {
        tracing::error!(%error, suppressed, "messages of a Dispatcher were rejected");
    }
}

/// Encodes a store error.
pub(super) fn write_store_error(out: &mut BytesMut, error: &StoreError) {
    encode::error(out, &format!("ERR {error}"));
}
