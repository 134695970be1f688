//! Records the events of the store itself: messages were delivered, expired, or evicted for newer ones.

use super::{EventKind, Outbox, OutboxEvent};
use crate::{
    embedded::{store_state::StoreState, tables::contract::EngineError, writer::state::Committer},
    message::{DeviceId, Seq, UserId},
    store::Outbox as _,
};

impl StoreState {
    /// Returns the outbox, if it stores events of this kind.
    pub(in crate::embedded) fn outbox_for(&self, kind: EventKind) -> Option<&Outbox> {
        self.outbox.as_deref().filter(|outbox| outbox.is_enabled(kind))
    }

    /// Records that a device acknowledged a range for the first time, both ends included.
    pub(in crate::embedded) fn record_delivered(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        range: Option<(Seq, Seq)>,
    ) {
        let Some((from, to)) = range else { return };
        if let Some(outbox) = self.outbox_for(EventKind::Delivered) {
            let device = device.map(|device| device.as_str().to_owned());
            outbox.put(OutboxEvent::Delivered { user: user.as_str().to_owned(), device, from, to });
        }
    }

    /// Records that a range was evicted for newer entries. `count` of its entries were pending.
    pub(in crate::embedded) fn record_dropped(&self, user: &UserId, from: Seq, to: Seq, count: u64) {
        if let Some(outbox) = self.outbox_for(EventKind::Dropped).filter(|_| count > 0) {
            outbox.put(OutboxEvent::Dropped { user: user.as_str().to_owned(), from, to, count });
        }
    }

    /// Records that pending entries expired. `seqs` must ascend.
    pub(in crate::embedded) fn record_expired(&self, user: &UserId, seqs: &[Seq]) {
        let Some(outbox) = self.outbox_for(EventKind::Expired) else { return };
        for (from, to) in runs(seqs) {
            outbox.put(OutboxEvent::Expired { user: user.as_str().to_owned(), from, to });
        }
    }
}

/// Splits ascending sequences into ranges, both ends included.
fn runs(seqs: &[Seq]) -> impl Iterator<Item = (Seq, Seq)> {
    seqs.chunk_by(|one, next| one + 1 == *next).filter_map(|run| Some((*run.first()?, *run.last()?)))
}

impl Committer {
    /// Drops a user's expired entries in the WAL, and records those that were pending.
    ///
    /// Their records stay in the WAL until the flush. So a following commit writes that the entries were reported. A
    /// crash before that commit repeats the event.
    pub(in crate::embedded) fn drop_expired(&self, user: &UserId, now_s: u32) -> Result<(), EngineError> {
        let expired = self.with_log(user, |log| log.drop_expired(now_s))?;
        if expired.is_empty() || self.shared.outbox_for(EventKind::Expired).is_none() {
            return Ok(());
        }
        self.shared.record_expired(user, &expired);
        self.with_log(user, |log| {
            log.reported_expired.extend(runs(&expired));
            self.shared.mark_dirty(user, log);
        })?;
        Ok(())
    }
}
