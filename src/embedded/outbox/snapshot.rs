//! Takes a snapshot of the outbox for a backup.

use super::{
    BatchInfo, Outbox, OutboxState,
    commit::read_all,
    damaged,
    format::{self, Batch, StoredLost},
    read_batch,
};
use crate::{
    embedded::tables::contract::{Table, Tables},
    message::Seq,
    store::StoreError,
};

/// Users per page of the reported sequences.
const PAGE_REPORTED: usize = 256;

/// A user, and the sequence up to which messages were reported as undelivered.
pub(in crate::embedded) type Reported = (String, Seq);

/// Holds the events of an outbox at one time. Those on disk are read later.
pub(in crate::embedded) struct Snapshot {
    batches: Vec<BatchInfo>,
    /// Batches that the commit thread has not written yet, with the number of their first event.
    pub waiting: Vec<(u64, Batch)>,
    /// Counts of dropped events, encoded.
    pub lost: Option<Vec<u8>>,
    /// Reported sequences that the commit thread has not written yet.
    pub reported: Vec<Reported>,
}

impl Outbox {
    /// Takes a snapshot of all events, including those that wait for the commit thread.
    ///
    /// The commit thread numbers waiting events in their order. So they have the same ids in the snapshot and later.
    pub(in crate::embedded) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        let waiting = self.split_into_batches(&mut state.next_number.clone(), state.waiting.clone());
        let lost = state
            .lost
            .any()
            .then(|| StoredLost::V1 { since_ms: state.lost.since_ms, lost: state.lost.list() }.encode());
        let reported = state.reported.iter().filter_map(|(user, seq)| Some((user.as_str().to_owned(), (*seq)?)));
        let in_progress = state.in_progress.iter().cloned();
        Snapshot {
            batches: state.batches.iter().copied().collect(),
            waiting: in_progress.chain(waiting.into_iter().map(|(info, batch)| (info.first, batch))).collect(),
            lost,
            reported: reported.collect(),
        }
    }
}

impl Snapshot {
    /// Takes a snapshot of the tables. Call this only if the store has no outbox, so that nothing changes it.
    pub(in crate::embedded) fn of_tables(tables: &dyn Tables) -> Result<Self, StoreError> {
        let mut state = OutboxState::default();
        read_all(tables, &mut state)?;
        let lost = tables.get(Table::Outbox, format::LOST_KEY)?.map(|lost| lost.to_vec());
        Ok(Self { batches: state.batches.into(), waiting: Vec::new(), lost, reported: Vec::new() })
    }

    /// Visits the batches on disk, the last first, until `visit` returns false.
    ///
    /// Batches are removed from the first on. So the first one that is missing ends the visit, and no batch between two
    /// others is ever missing.
    pub(in crate::embedded) fn visit_batches(
        &self,
        tables: &dyn Tables,
        outbox: Option<&Outbox>,
        visit: &mut dyn FnMut(u64, &Batch) -> bool,
    ) -> Result<(), StoreError> {
        for info in self.batches.iter().rev() {
            let batch = match outbox {
                Some(outbox) => outbox.read_stored(*info)?,
                None => Some(read_batch(tables, *info)?),
            };
            if !batch.is_some_and(|batch| visit(info.first, &batch)) {
                break;
            }
        }
        Ok(())
    }
}

/// Visits the written reported sequences in pages, until `visit` returns false.
pub(in crate::embedded) fn visit_reported(
    tables: &dyn Tables,
    visit: &mut dyn FnMut(&[Reported]) -> bool,
) -> Result<(), StoreError> {
    let mut from = format::reported_key("");
    loop {
        let (mut page, mut damage) = (Vec::new(), None);
        tables.scan(Table::Outbox, &from, &mut |key, value| {
            let Some(user) = format::reported_user(key) else { return false };
            match format::decode_reported(&value) {
                Ok(seq) => page.push((user.as_str().to_owned(), seq)),
                Err(error) => damage = Some(damaged(error)),
            }
            page.len() < PAGE_REPORTED && damage.is_none()
        })?;
        if let Some(damage) = damage {
            return Err(damage);
        }
        let Some((last, _)) = page.last() else { return Ok(()) };
        from = format::reported_key(last);
        from.push(0);
        if !visit(&page) || page.len() < PAGE_REPORTED {
            return Ok(());
        }
    }
}
