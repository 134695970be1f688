//! What the store itself puts into the outbox: that messages were received, have expired, or went for newer ones. Without an
//! outbox each costs a look.

use super::{EventKind, Outbox, OutboxEvent};
use crate::{
    embedded::{shared::Shared, tables::contract::EngineError, writer::state::Committer},
    message::{DeviceId, Seq, UserId},
    store::Outbox as _,
};

impl Shared {
    /// The outbox, if there is one that wants events of this kind.
    pub(super) fn outbox_for(&self, kind: EventKind) -> Option<&Outbox> {
        self.outbox.as_deref().filter(|outbox| outbox.wants(kind))
    }

    /// A client has received what was not received before on its device: this range, both ends included.
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

    /// These went for newer ones; `count` of them had not been received.
    pub(in crate::embedded) fn record_dropped(&self, user: &UserId, from: Seq, to: Seq, count: u64) {
        if let Some(outbox) = self.outbox_for(EventKind::Dropped).filter(|_| count > 0) {
            outbox.put(OutboxEvent::Dropped { user: user.as_str().to_owned(), from, to, count });
        }
    }

    /// These, rising, were too old, and had not been received by everybody.
    pub(in crate::embedded) fn record_expired(&self, user: &UserId, seqs: &[Seq]) {
        let Some(outbox) = self.outbox_for(EventKind::Expired) else { return };
        for (from, to) in runs(seqs) {
            outbox.put(OutboxEvent::Expired { user: user.as_str().to_owned(), from, to });
        }
    }
}

/// The ranges, both ends included, that rising sequences are made of.
fn runs(seqs: &[Seq]) -> impl Iterator<Item = (Seq, Seq)> {
    seqs.chunk_by(|one, next| one + 1 == *next).filter_map(|run| Some((*run.first()?, *run.last()?)))
}

impl Committer {
    /// Drops a user's entries in the journal that have expired, and reports those that some cursor lacks.
    ///
    /// The journal has the entries until it is settled. So that no restart reports them again, a following commit
    /// writes that they were reported; a crash before that repeats the event.
    pub(in crate::embedded) fn drop_expired(&self, user: &UserId, now_s: u32) -> Result<(), EngineError> {
        let expired = self.with_log(user, |log| log.drop_expired(now_s))?;
        if expired.is_empty() || self.shared.outbox_for(EventKind::Expired).is_none() {
            return Ok(());
        }
        self.shared.record_expired(user, &expired);
        self.with_log(user, |log| {
            log.reported_expired.extend(runs(&expired));
            self.shared.announce(user, !std::mem::replace(&mut log.dirty, true), false);
        })?;
        Ok(())
    }
}
