//! A backup of the store, as it is read by whoever asked for it.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use super::Hub;

/// Pieces that wait for a slow reader.
const PIECES_MAX: usize = 4;

/// Bytes of a piece.
const PIECE_BYTES: usize = 128 << 10;

/// A reader that takes nothing for this long is given up, so that another may begin.
const PATIENCE: Duration = Duration::from_secs(60);

impl Hub {
    /// Whether the logs are not this server's, which can make no backup of them then.
    #[must_use]
    pub fn has_far_logs(&self) -> bool {
        self.store.is_far()
    }

    /// Begins a backup; `None` while another is under way. Ends early when nobody reads it any more.
    #[must_use]
    pub fn backup(&self) -> Option<Backup> {
        let turn = self.backups.clone().try_acquire_owned().ok()?;
        let (pieces, reader) = mpsc::channel(PIECES_MAX);
        let (store, runtime) = (self.store.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut out = Pieces { open: Vec::new(), to: pieces, runtime };
            match store.backup(&mut out).and_then(|contents| Ok(out.flush().map(|()| contents)?)) {
                Ok(contents) => {
                    // That it was read to its end is of no concern here.
                    _ = out.send(Piece::End);
                    tracing::info!(contents.users, contents.entries, contents.bytes, "backed up");
                }
                Err(error) => {
                    tracing::warn!(%error, "a backup ended early");
                }
            }
        });
        Some(Backup { pieces: reader, over: false })
    }
}

/// A backup, as it is read.
#[derive(Debug)]
pub struct Backup {
    pieces: mpsc::Receiver<Piece>,
    over: bool,
}

impl Backup {
    /// The next bytes. An error comes last, where the backup has ended early; `None` after the end.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.over {
            return None;
        }
        match self.pieces.recv().await {
            Some(Piece::Bytes(bytes)) => return Some(Ok(bytes)),
            Some(Piece::End) => self.over = true,
            None => {
                self.over = true;
                return Some(Err(io::Error::other("the backup has ended early; the log of the server says why")));
            }
        }
        None
    }
}

/// What is sent to whoever reads a backup.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// It is whole.
    End,
}

/// What is written goes to a reader, piece by piece.
struct Pieces {
    open: Vec<u8>,
    to: mpsc::Sender<Piece>,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: Piece) -> io::Result<()> {
        match self.runtime.block_on(timeout(PATIENCE, self.to.send(piece))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked for it is gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "whoever asked for it does not read")),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.extend_from_slice(bytes);
        if self.open.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.open));
        self.send(Piece::Bytes(piece))
    }
}
