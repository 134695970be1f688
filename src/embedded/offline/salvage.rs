//! Salvage: writes the readable data of a damaged store to a new store.

use std::path::Path;

use bytes::Bytes;

use crate::{
    embedded::{
        backup::{
            build::{LOSSY_RESTARTS_ADDED, StoreBuilder},
            format::Contents,
        },
        offline::inspect::{InspectSink, Inspection, LogFacts},
        tables::{schema::StoredId, unfinished::Operation},
    },
    message::Seq,
    store::StoreError,
};

/// Passes users to a builder, and reports each.
struct Counted<'a, F> {
    build: &'a mut StoreBuilder,
    on_user: F,
}

impl<F: Fn()> InspectSink for Counted<'_, F> {
    fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        self.build.entries(user, entries)
    }

    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError> {
        self.build.log(facts)?;
        (self.on_user)();
        Ok(())
    }
}

/// Writes the readable data of a damaged store to a new store.
///
/// `out` must be missing or empty. Afterwards the inspection lists all damage.
///
/// # Errors
/// When `out` is not empty, or the store cannot be written.
pub fn salvage(inspection: &mut Inspection, out: &Path) -> Result<Contents, StoreError> {
    salvage_with(inspection, out, || {})
}

/// As [`salvage`]. Calls `on_user` after each user.
///
/// # Errors
/// As [`salvage`].
pub fn salvage_with(inspection: &mut Inspection, out: &Path, on_user: impl Fn()) -> Result<Contents, StoreError> {
    let namespace = inspection.facts().namespace.clone().unwrap_or_default();
    let mut build = StoreBuilder::begin(out, &namespace, Operation::Salvage)?;
    let ids: Vec<StoredId> = inspection.ids().iter().map(|entry| entry.0.clone()).collect();
    ids.chunks(64).try_for_each(|part| build.write_ids(part.to_vec()))?;
    inspection.visit(&mut Counted { build: &mut build, on_user })?;
    let known = inspection.facts().lossy_restarts;
    let lossy_restarts = if inspection.is_undamaged() { known } else { known.saturating_add(LOSSY_RESTARTS_ADDED) };
    build.finish(lossy_restarts, 0, inspection.facts().floor)
}
