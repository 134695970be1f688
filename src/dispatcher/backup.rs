//! Fetching a backup.

use std::{io, time::Duration};

use reqwest::Method;
use tokio::time::timeout;

use super::{DispatchError, Dispatcher, TIMEOUT};

/// How long a backup may take in all.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl Dispatcher {
    /// Fetches a backup of the server's store, and hands it to `write` piece by piece. Whether it is whole is to be
    /// asked of what was written: see [`portable::verify`](crate::embedded::backup::format::verify).
    ///
    /// # Errors
    /// When the server refuses, falls silent, or `write` fails.
    pub async fn backup(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), DispatchError> {
        let request = self.request(Method::GET, self.url(&["backup"])?).timeout(BACKUP_TIMEOUT);
        let mut response = request.send().await.map_err(|error| self.failed(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        loop {
            let piece = timeout(TIMEOUT, response.chunk()).await;
            let piece = piece.map_err(|_| DispatchError::Silent { url: self.shown(), waited: TIMEOUT })?;
            let Some(piece) = piece.map_err(|error| self.failed(&error))? else { return Ok(()) };
            write(&piece).map_err(|error| DispatchError::NotWritten(error.to_string()))?;
        }
    }
}
