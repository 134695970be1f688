//! Persists the ids of the original's portals in a small file in the store's directory.
//!
//! A portal announces itself only once, when it starts, and the server may restart after that. If the file cannot be
//! read or written, the server logs that and continues.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::stopped;
use crate::resp::AnnouncedPortal;

/// Maximum bytes that are read: several times the size of all possible ids.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A portal in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    id: String,
    address: IpAddr,
}

/// The file of portal ids.
pub(super) struct PortalIdFile {
    path: PathBuf,
}

impl PortalIdFile {
    /// Returns the file in the directory of a store, which only this process uses.
    pub(super) fn in_store(directory: &Path) -> Self {
        Self { path: directory.join("portals.json") }
    }

    /// Reads the portals of the previous run.
    pub(super) fn read(&self) -> Vec<AnnouncedPortal> {
        let read = || {
            let mut text = String::new();
            std::fs::File::open(&self.path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(serde_json::from_str::<Vec<Row>>(&text)?)
        };
        match read() {
            Ok(rows) => rows.into_iter().map(|Row { id, address }| AnnouncedPortal { id, address }).collect(),
            Err(error) => {
                let error: std::io::Error = error;
                if error.kind() != ErrorKind::NotFound {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "the portal ids of the last run cannot be read; restart the portals of the original");
                }
                Vec::new()
            }
        }
    }

    /// Writes the portals whenever they change, until `stop` is set.
    pub(super) async fn persist(
        &self,
        announced: &mut watch::Receiver<Vec<AnnouncedPortal>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let path = std::sync::Arc::new(self.path.clone());
        loop {
            let has_changed = tokio::select! {
                biased;
                changed = announced.changed() => changed.is_ok(),
                () = stopped(&mut stop) => false,
            };
            if !has_changed {
                return;
            }
            let current = announced.borrow_and_update().clone();
            let path = path.clone();
            // A result is an error only if the runtime stops or `write` panics.
            _ = tokio::task::spawn_blocking(move || {
                if let Err(error) = write(&path, current) {
                    tracing::warn!(path = %path.display(), %error, "portal ids cannot be written; after a restart of the server, restart the portals of the original");
                }
            })
            .await;
        }
    }
}

/// Replaces the file atomically.
fn write(path: &Path, announced: Vec<AnnouncedPortal>) -> std::io::Result<()> {
    let rows: Vec<Row> = announced.into_iter().map(|AnnouncedPortal { id, address }| Row { id, address }).collect();
    let mut draft = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    draft.write_all(&serde_json::to_vec(&rows)?)?;
    draft.as_file().sync_data()?;
    draft.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn persisted_portal_ids_are_read_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let ids = || PortalIdFile::in_store(directory.path());
        assert_eq!(ids().read(), []);
        let one = AnnouncedPortal { id: "one\n".into(), address: [10, 0, 0, 1].into() };
        let (portals, stop) = (watch::Sender::new(Vec::new()), watch::Sender::new(false));
        let (mut announced, stopped) = (portals.subscribe(), stop.subscribe());
        let file = ids();
        let persisting = tokio::spawn(async move { file.persist(&mut announced, stopped).await });
        portals.send_replace(vec![one.clone()]);
        // A change before the stop is still written.
        stop.send_replace(true);
        persisting.await.unwrap();
        assert_eq!(ids().read(), [one]);
        std::fs::write(directory.path().join("portals.json"), "{").unwrap();
        assert_eq!(ids().read(), [], "an unreadable file counts as empty, so that the server starts");
    }
}
