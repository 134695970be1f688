//! Stores a client's position in the user's log, from which it resumes.

use std::{
    fmt, fs,
    future::Future,
    io,
    io::Write,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::ClientError;
use crate::{logging::system_error, message::Seq};

/// Stores the sequence of the last message that a program has processed.
///
/// One store belongs to one user and device. The methods run on a thread that may block, one at a time. A program that
/// stores its results in a database implements this trait there.
///
/// [`FilePositions`] and [`MemoryPositions`] implement it.
pub trait PositionStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the stored position; `None` if there is none yet.
    ///
    /// # Errors
    /// Fails if the position cannot be read. Then the client does not connect.
    fn load(&self) -> io::Result<Option<Seq>>;

    /// Stores a position durably, and returns after that.
    ///
    /// It is usually higher than the previous one, but not after the server's store was replaced.
    ///
    /// # Errors
    /// Fails if the position may not be durable. Then the client does not acknowledge the message.
    fn save(&self, position: Seq) -> io::Result<()>;
}

impl<S: PositionStore + ?Sized> PositionStore for Arc<S> {
    fn load(&self) -> io::Result<Option<Seq>> {
        (**self).load()
    }

    fn save(&self, position: Seq) -> io::Result<()> {
        (**self).save(position)
    }
}

/// Stores a position in memory, for tests, and for several clients one after another in one process.
#[derive(Debug, Default)]
pub struct MemoryPositions(Mutex<Option<Seq>>);

impl PositionStore for MemoryPositions {
    fn load(&self) -> io::Result<Option<Seq>> {
        Ok(*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn save(&self, position: Seq) -> io::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
        Ok(())
    }
}

/// Stores a position in a file, which is replaced as a whole.
///
/// Use one file per user and device. Its directory must exist.
#[derive(Debug)]
pub struct FilePositions {
    path: PathBuf,
}

impl FilePositions {
    /// Creates a store in a file, which the first saved position creates.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Names the file and a remedy in an error.
    fn explained(&self, error: &io::Error, remedy: &str) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {}. {remedy}", self.path.display(), system_error(error)))
    }

    fn replace(&self, position: Seq) -> io::Result<()> {
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| ".".as_ref());
        // Each save has a file of its own, so that a save of a dropped client cannot mix with one of its successor.
        let mut file = tempfile::Builder::new().prefix(".position-").tempfile_in(directory)?;
        writeln!(file, "{position}")?;
        // Synced before it is renamed: otherwise a power cut could leave an empty file under the final name. The
        // directory is not synced: after a power cut the previous position may be back, which repeats and never loses.
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

impl PositionStore for FilePositions {
    fn load(&self) -> io::Result<Option<Seq>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.explained(&error, "Make the file readable for this program")),
        };
        text.trim().parse().map(Some).map_err(|_| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "the file does not hold a position");
            self.explained(&error, "Choose another file, or delete this one to receive the whole log again")
        })
    }

    fn save(&self, position: Seq) -> io::Result<()> {
        self.replace(position).map_err(|error| {
            self.explained(&error, "Make its directory writable, with free space, and restart the client")
        })
    }
}

/// Moves the position of one client.
#[derive(Debug)]
pub(super) struct Positions {
    store: Arc<dyn PositionStore>,
    saved: Option<Seq>,
    /// A save in progress. It survives a cancelled call of `next`.
    saving: Option<JoinHandle<io::Result<Seq>>>,
}

impl Positions {
    /// Loads the position.
    pub(super) async fn load(store: Arc<dyn PositionStore>) -> Result<Self, ClientError> {
        let loading = store.clone();
        let loaded = spawn_blocking(move || loading.load()).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match loaded {
            Ok(saved) => Ok(Self { store, saved, saving: None }),
            Err(error) => Err(ClientError::Position(format!("loaded: {error}"))),
        }
    }

    /// Returns the stored position.
    pub(super) fn saved(&self) -> Option<Seq> {
        self.saved
    }

    /// Saves a position. After `Pending` the caller repeats the call with the same position.
    pub(super) fn poll_save(&mut self, position: Seq, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        if self.saved == Some(position) {
            return Poll::Ready(Ok(()));
        }
        let saving = self.saving.get_or_insert_with(|| {
            let store = self.store.clone();
            spawn_blocking(move || store.save(position).map(|()| position))
        });
        let result = ready!(Pin::new(saving).poll(context)).unwrap_or_else(|error| Err(io::Error::other(error)));
        self.saving = None;
        match result {
            Ok(position) => {
                self.saved = Some(position);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(ClientError::Position(format!("stored: {error}")))),
        }
    }
}

#[cfg(test)]
mod tests;
