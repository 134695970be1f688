//! Salvage: writes what can be read of a damaged store to a new one.

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

/// Writes the readable data of a damaged store to a new one at `out`, which must not exist or be empty.
///
/// Afterwards the inspection lists the damage.
///
/// # Errors
/// When `out` is not empty, or it cannot be written.
pub fn salvage(inspection: &mut Inspection, out: &Path) -> Result<Contents, StoreError> {
    let namespace = inspection.facts().namespace.clone().unwrap_or_default();
    let mut build = StoreBuilder::begin(out, &namespace, Operation::Salvage)?;
    let ids: Vec<StoredId> = inspection.ids().iter().map(|entry| entry.0.clone()).collect();
    ids.chunks(64).try_for_each(|part| build.write_ids(part.to_vec()))?;
    inspection.visit(&mut build)?;
    let known = inspection.facts().lossy_restarts;
    let lossy_restarts = if inspection.is_whole() { known } else { known.saturating_add(LOSSY_RESTARTS_ADDED) };
    build.finish(lossy_restarts, 0)
}
