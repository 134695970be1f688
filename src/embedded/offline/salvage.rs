//! Salvage: writes the readable data of a damaged store to a new store.

use std::path::Path;

use crate::{
    embedded::{
        backup::{
            build::{LOSSY_RESTARTS_ADDED, StoreBuilder},
            format::Contents,
        },
        offline::inspect::Inspection,
        tables::{schema::StoredId, unfinished::Operation},
    },
    store::StoreError,
};

/// Writes the readable data of a damaged store to a new store.
///
/// `out` must be missing or empty. Afterwards the inspection lists all damage.
///
/// # Errors
/// When `out` is not empty, or the store cannot be written.
pub fn salvage(inspection: &mut Inspection, out: &Path) -> Result<Contents, StoreError> {
    let namespace = inspection.facts().namespace.clone().unwrap_or_default();
    let mut build = StoreBuilder::begin(out, &namespace, Operation::Salvage)?;
    let ids: Vec<StoredId> = inspection.ids().iter().map(|entry| entry.0.clone()).collect();
    ids.chunks(64).try_for_each(|part| build.write_ids(part.to_vec()))?;
    inspection.visit(&mut build)?;
    let known = inspection.facts().lossy_restarts;
    let lossy_restarts = if inspection.is_undamaged() { known } else { known.saturating_add(LOSSY_RESTARTS_ADDED) };
    build.finish(lossy_restarts, 0, inspection.facts().floor)
}
