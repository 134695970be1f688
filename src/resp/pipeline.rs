//! Messages that share a commit, and the answers that wait for it.
//!
//! Commands are answered in order. What does not depend on the log is answered at once, behind the answers that wait; what
//! does waits until they are there.

use std::collections::HashSet;

use bytes::BytesMut;
use foldhash::fast::RandomState;

use super::{Wire, encode};
use crate::{
    health::LogLimit,
    hub::{PreparedDispatch, StoreError},
    message::UserId,
};

/// Messages of one batch. More would let others wait longer for their turn in the commit thread.
const MESSAGES_MAX: usize = 512;

/// Bytes of the commands of one batch (one at least).
const BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Answers that are there.
    done: BytesMut,
    kept: Vec<PreparedDispatch>,
    /// For each message the answers that were ready behind it.
    behind: Vec<BytesMut>,
    bytes: usize,
    /// Bytes of the answers that are ready, but for those behind the last message.
    ready_bytes: usize,
    /// Whose logs the messages go to.
    users: HashSet<UserId, RandomState>,
}

impl Batch {
    /// Where the next answer goes, if it is there.
    pub(super) fn answer(&mut self) -> &mut BytesMut {
        self.behind.last_mut().unwrap_or(&mut self.done)
    }

    pub(super) fn keep<'a>(
        &mut self,
        kept: PreparedDispatch,
        users: impl IntoIterator<Item = &'a UserId>,
        bytes: usize,
    ) {
        self.ready_bytes += self.answer().len();
        self.kept.push(kept);
        self.behind.push(BytesMut::new());
        self.bytes += bytes;
        self.users.extend(users.into_iter().cloned());
    }

    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Bytes of the answers that are ready, whether or not they wait for others.
    pub(super) fn answer_bytes(&mut self) -> usize {
        self.ready_bytes + self.answer().len()
    }

    /// Whether a message for this user waits.
    pub(super) fn concerns(&self, user: &UserId) -> bool {
        self.users.contains(user)
    }

    /// Appends what waits, and answers for it once it is durable.
    pub(super) async fn settle(&mut self, wire: &Wire) {
        if self.kept.is_empty() {
            return;
        }
        self.ready_bytes = 0;
        let kept = std::mem::take(&mut self.kept);
        let behind = std::mem::take(&mut self.behind).into_iter();
        self.bytes = 0;
        self.users.clear();
        match wire.hub.commit(kept).await {
            Ok(taken) => {
                for (outcome, ready) in wire.hub.outcomes(taken).zip(behind) {
                    encode::integer(&mut self.done, wire.taken_for(&outcome));
                    self.done.unsplit(ready);
                }
            }
            Err(error) => {
                log_failure(&error);
                for ready in behind {
                    not_taken(&mut self.done, &error);
                    self.done.unsplit(ready);
                }
            }
        }
    }

    /// The answers that are there.
    pub(super) fn take_answers(&mut self) -> BytesMut {
        debug_assert!(self.kept.is_empty(), "answers that are there stand behind some that are not");
        self.done.split()
    }
}

/// A cause that lasts fails every message.
static FAILED: LogLimit = LogLimit::new();

/// Logs that messages of a Dispatcher were not taken, once per interval.
pub(super) fn log_failure(error: &StoreError) {
    if let Some(suppressed) = FAILED.due("dispatcher") {
        tracing::error!(%error, suppressed, "messages of a Dispatcher were not taken");
    }
}

pub(super) fn not_taken(out: &mut BytesMut, error: &StoreError) {
    encode::error(out, &format!("ERR {error}"));
}
