//! Backup of the store, streamed to a client of the API.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use super::Hub;

/// Chunks queued for the reader; then the backup waits.
const CHUNKS_MAX: usize = 4;

/// Smallest size of a chunk but the last, in bytes.
const CHUNK_BYTES_MIN: usize = 128 << 10;

/// Time for the reader to take a chunk. Then the backup ends, so that another can begin.
const READER_TIMEOUT: Duration = Duration::from_secs(60);

impl Hub {
    /// Reports whether the logs are in a remote store, so that this server cannot back them up.
    #[must_use]
    pub fn has_remote_logs(&self) -> bool {
        self.store.is_remote()
    }

    /// Starts a backup; `None` while another is running. It stops early when the returned stream is dropped.
    #[must_use]
    pub fn backup(&self) -> Option<Backup> {
        let permit = self.backups.clone().try_acquire_owned().ok()?;
        let (chunks, reader) = mpsc::channel(CHUNKS_MAX);
        let (store, runtime) = (self.store.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut out = ChunkWriter { buffer: Vec::new(), to: chunks, runtime };
            match store.backup(&mut out).and_then(|contents| Ok(out.flush().map(|()| contents)?)) {
                Ok(contents) => {
                    // The backup is complete, whether or not the reader takes this item.
                    _ = out.send(Item::End);
                    tracing::info!(
                        contents.users,
                        contents.entries,
                        contents.bytes,
                        contents.events,
                        "backup complete"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "the backup is incomplete; start it again");
                }
            }
        });
        Some(Backup { chunks: reader, ended: false })
    }
}

/// A running backup, as a stream of chunks.
#[derive(Debug)]
pub struct Backup {
    chunks: mpsc::Receiver<Item>,
    ended: bool,
}

impl Backup {
    /// Returns the next chunk, and `None` after the end. A backup that stopped early ends with an error.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        match self.chunks.recv().await {
            Some(Item::Bytes(bytes)) => return Some(Ok(bytes)),
            Some(Item::End) => self.ended = true,
            None => {
                self.ended = true;
                return Some(Err(io::Error::other(
                    "the backup is incomplete: the server's log names the cause; start it again",
                )));
            }
        }
        None
    }
}

/// An item of the queue between the backup and its reader.
#[derive(Debug)]
enum Item {
    Bytes(Bytes),
    /// The backup is complete.
    End,
}

/// Cuts the written bytes into chunks and sends them to the reader.
struct ChunkWriter {
    buffer: Vec<u8>,
    to: mpsc::Sender<Item>,
    runtime: Handle,
}

impl ChunkWriter {
    fn send(&self, item: Item) -> io::Result<()> {
        match self.runtime.block_on(timeout(READER_TIMEOUT, self.to.send(item))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the reader of the backup is gone")),
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the reader of the backup has taken nothing for 60 s"))
            }
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES_MIN {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.send(Item::Bytes(chunk))
    }
}
