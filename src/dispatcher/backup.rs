//! Fetches a backup.

use std::{io, time::Duration};

use reqwest::Method;
use tokio::time::timeout;

use super::{DispatchError, Dispatcher, TIMEOUT};

/// Time limit of a complete backup.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl Dispatcher {
    /// Fetches a backup of the server's store, and passes it to `write` in chunks.
    ///
    /// A connection that breaks can leave an incomplete file. `mesa restore` and
    /// [`verify`](crate::embedded::backup::format::verify) detect it.
    ///
    /// # Errors
    /// Fails if the server rejects the request, a chunk takes longer than 30 s, or `write` fails.
    pub async fn backup(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), DispatchError> {
        let request = self.request(Method::GET, self.url(&["backup"])?).timeout(BACKUP_TIMEOUT);
        let mut response = request.send().await.map_err(|error| self.network_error(&error))?;
        if !response.status().is_success() {
            return Err(self.rejection(response).await);
        }
        loop {
            let chunk = timeout(TIMEOUT, response.chunk()).await;
            let chunk = chunk.map_err(|_| DispatchError::TimedOut { url: self.origin(), waited: TIMEOUT })?;
            let Some(chunk) = chunk.map_err(|error| self.network_error(&error))? else { return Ok(()) };
            write(&chunk).map_err(|error| DispatchError::NotWritten(error.to_string()))?;
        }
    }
}
