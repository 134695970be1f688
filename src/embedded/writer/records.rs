//! Builds the records of a commit, and collects its replies.

use std::time::Instant;

use super::{
    jobs::CountBudget,
    reply::{Reply, ReplySender},
    state::Commit,
};
use crate::{
    embedded::{
        store_state::StoreState,
        tables::contract::EngineError,
        wal::record::{Item, RECORD_BYTES, RecordWriter},
    },
    store::StoreError,
};

/// Upper bound of the overhead of a record in a segment, in bytes.
pub(super) const FRAME_BYTES: u64 = 64;

impl Commit {
    /// Begins a commit whose first record is `number`.
    pub(super) fn new(number: u64) -> Self {
        Self {
            records: Vec::new(),
            writer: None,
            number,
            entries: Vec::new(),
            first_entries: false,
            purge_hidden: Vec::new(),
            purge_all: Vec::new(),
            count_budget: CountBudget::default(),
            replies: Vec::new(),
            events: Vec::new(),
            bytes: 0,
            has_replies: false,
            began: Instant::now(),
        }
    }

    /// Queues the reply until the commit is durable. Replies at once if the operation failed.
    pub(super) fn push_reply<T>(
        &mut self,
        result: Result<T, EngineError>,
        done: ReplySender<T>,
        reply: fn(ReplySender<T>, T) -> Reply,
    ) -> Result<(), EngineError> {
        match result {
            Ok(result) => {
                self.replies.push(reply(done, result));
                Ok(())
            }
            Err(error) => {
                _ = done.send(Err(StoreError::from(error.clone())));
                if error.is_transient() { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Replies to all callers that the commit failed.
    pub(in crate::embedded) fn reject(&mut self, error: &StoreError) {
        self.replies.drain(..).for_each(|reply| reply.reject(error));
    }

    /// Returns the bytes of all records, with their overhead in a file.
    pub(super) fn all_bytes(&self) -> u64 {
        self.bytes + self.bytes() as u64 + FRAME_BYTES
    }

    /// Returns the bytes of the open record.
    pub(in crate::embedded) fn bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, RecordWriter::bytes)
    }

    /// Writes an item into the open record. Returns its offset.
    pub(in crate::embedded) fn push(&mut self, shared: &StoreState, item: &Item<'_>) -> u32 {
        let new = || RecordWriter::new(shared.namespace, shared.clock.now_ms());
        self.writer.get_or_insert_with(new).push(item)
    }

    /// Starts a new record if an item of `bytes` does not fit into the open one.
    pub(in crate::embedded) fn ensure_capacity(&mut self, bytes: usize) {
        if self.bytes() + bytes > RECORD_BYTES {
            self.next_record();
        }
    }

    /// Starts a new record. After a crash, a commit without its last record is removed.
    pub(in crate::embedded) fn next_record(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.push(&Item::More);
            self.finish_record();
        }
    }

    /// Closes the open record, if there is one.
    pub(super) fn finish_record(&mut self) {
        if let Some(writer) = self.writer.take() {
            let record = writer.finish();
            self.bytes += record.len() as u64 + FRAME_BYTES;
            self.records.push((self.number, record));
            self.number += 1;
        }
    }
}
