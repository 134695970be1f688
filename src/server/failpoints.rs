//! Failpoints of the delivery path (see [`failpoints`](crate::failpoints)).

use std::sync::{Mutex, PoisonError};

use crate::{
    failpoints::{Failpoint, one_in},
    hub::Entry,
};

/// Corrupts some batches if a failpoint of delivery is enabled; otherwise returns them unchanged.
pub(super) fn corrupt_batch(mut entries: Vec<Entry>) -> Vec<Entry> {
    static LAST: Mutex<Option<Entry>> = Mutex::new(None);
    if entries.len() > 1 && one_in(Failpoint::Reorder, 20) {
        let payload = entries[0].payload.clone();
        entries[0].payload = entries[1].payload.clone();
        entries[1].payload = payload;
    }
    if let Some(first) = entries.first_mut()
        && one_in(Failpoint::ForeignEntry, 10)
    {
        let other = LAST.lock().unwrap_or_else(PoisonError::into_inner).replace(first.clone());
        if let Some(other) = other.filter(|other| other.owner != first.owner) {
            first.payload = other.payload;
        }
    }
    entries
}
