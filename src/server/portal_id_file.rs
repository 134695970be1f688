//! The stock portals that are in the pool, in a small file beside the store: a portal says only once in its life that it is
//! there, and the server may be started anew in between.
//!
//! Nothing hangs on it but that. Where the file cannot be read or written the log says so, and the server goes on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::stopped;
use crate::resp::Announced;

/// Largest file that is read: some times what all ids there may be take.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    id: String,
    address: IpAddr,
}

/// The file.
pub(super) struct PortalIds {
    path: PathBuf,
}

impl PortalIds {
    /// The file in the directory of a store, which is ours alone.
    pub(super) fn in_store(directory: &Path) -> Self {
        Self { path: directory.join("portals.json") }
    }

    /// Who was in the pool.
    pub(super) fn read(&self) -> Vec<Announced> {
        let read = || {
            let mut text = String::new();
            std::fs::File::open(&self.path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(serde_json::from_str::<Vec<Line>>(&text)?)
        };
        match read() {
            Ok(lines) => lines.into_iter().map(|Line { id, address }| Announced { id, address }).collect(),
            Err(error) => {
                let error: std::io::Error = error;
                if error.kind() != ErrorKind::NotFound {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "cannot read which portals there were; start stock portals anew");
                }
                Vec::new()
            }
        }
    }

    /// Writes down who is in the pool, whenever that changes, until `stop` says so.
    pub(super) async fn keep(&self, announced: &mut watch::Receiver<Vec<Announced>>, mut stop: watch::Receiver<bool>) {
        let path = std::sync::Arc::new(self.path.clone());
        loop {
            let more = tokio::select! {
                biased;
                changed = announced.changed() => changed.is_ok(),
                () = stopped(&mut stop) => false,
            };
            if !more {
                return;
            }
            let now = announced.borrow_and_update().clone();
            let to = path.clone();
            // It ends with the runtime, or has said what went wrong.
            _ = tokio::task::spawn_blocking(move || {
                if let Err(error) = write(&to, now) {
                    tracing::warn!(path = %to.display(), %error, "cannot write down which portals there are");
                }
            })
            .await;
        }
    }
}

/// The file is there in full or as it was.
fn write(path: &Path, announced: Vec<Announced>) -> std::io::Result<()> {
    let lines: Vec<Line> = announced.into_iter().map(|Announced { id, address }| Line { id, address }).collect();
    let mut draft = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    draft.write_all(&serde_json::to_vec(&lines)?)?;
    draft.as_file().sync_data()?;
    draft.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_was_in_the_pool_is_known_to_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let ids = || PortalIds::in_store(directory.path());
        assert_eq!(ids().read(), []);
        let one = Announced { id: "one\n".into(), address: [10, 0, 0, 1].into() };
        let (told, stop) = (watch::Sender::new(Vec::new()), watch::Sender::new(false));
        let (mut announced, stopped) = (told.subscribe(), stop.subscribe());
        let kept = ids();
        let keeping = tokio::spawn(async move { kept.keep(&mut announced, stopped).await });
        told.send_replace(vec![one.clone()]);
        // What was said before is written all the same.
        stop.send_replace(true);
        keeping.await.unwrap();
        assert_eq!(ids().read(), [one]);
        std::fs::write(directory.path().join("portals.json"), "{").unwrap();
        assert_eq!(ids().read(), [], "and the server starts all the same");
    }
}
