//! Marks a store's directory while a restore, a salvage or an import writes it.
//!
//! The marker is a small file. It is written and synced before any data, and removed after everything else is synced.
//! While it exists the store does not open, because some of its messages are missing. A rebuild of the tables needs no
//! marker: they are replaced in one step, so an interruption leaves the old tables.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::{directory::StoreDir, files::UNFINISHED as NAME, open_error};
use crate::store::StoreError;

/// Names an operation that creates or changes a whole store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `mesa restore`.
    Restore,
    /// `mesa inspect --salvage`.
    Salvage,
    /// `mesa import`.
    Import,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Restore, Self::Salvage, Self::Import];

    fn command(self) -> &'static str {
        match self {
            Self::Restore => "mesa restore",
            Self::Salvage => "mesa inspect --salvage",
            Self::Import => "mesa import",
        }
    }

    /// Returns whether a second run starts over. Otherwise it resumes in the same directory.
    fn starts_over(self) -> bool {
        !matches!(self, Self::Import)
    }

    /// Describes the remedy if the operation did not finish.
    fn next_step(self) -> String {
        let command = self.command();
        if self.starts_over() {
            format!(
                "`{command}` did not finish in it, so messages are missing. Run `{command}` again, which starts over, or \
                 remove this directory"
            )
        } else {
            format!(
                "`{command}` did not finish in it, so messages may be missing. Run `{command}` again, which continues where \
                 it stopped; or remove the file `{NAME}` in it, to use what is there"
            )
        }
    }
}

/// Returns why a store must not be opened, if an operation on it did not finish.
pub fn reason(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let unknown = || {
        format!(
            "an operation on it did not finish, as its file `{NAME}` states, so messages may be missing. Repeat the \
             operation, or remove that file to use what is there"
        )
    };
    Ok(Some(operation_of(&text).map_or_else(unknown, Operation::next_step)))
}

fn operation_of(text: &str) -> Option<Operation> {
    let command = text.lines().next()?;
    Operation::ALL.into_iter().find(|operation| operation.command() == command)
}

/// Rejects a directory with an unfinished operation, unless the same operation can resume it (an import).
pub fn check(path: &Path, operation: Option<Operation>) -> Result<(), StoreError> {
    let cannot_open = |reason: String| StoreError::Open { path: path.to_owned(), reason };
    let unread =
        |error: io::Error| cannot_open(open_error::io_reason(&format!("its file `{NAME}` cannot be read"), &error));
    let Some(why) = reason(path).map_err(unread)? else { return Ok(()) };
    let text = fs::read_to_string(path.join(NAME)).map_err(unread)?;
    let resumes = operation.is_some_and(|operation| !operation.starts_over() && operation_of(&text) == Some(operation));
    if resumes { Ok(()) } else { Err(cannot_open(why)) }
}

/// Writes the marker. Durable on return.
pub fn begin(path: &Path, operation: Operation) -> io::Result<()> {
    let mut file = File::create(path.join(NAME))?;
    writeln!(file, "{}\nThis store is not finished: {}.", operation.command(), operation.next_step())?;
    file.sync_all()?;
    File::open(path)?.sync_all()
}

/// Removes the marker, after everything else is synced. Durable on return.
pub fn end(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::open(path)?.sync_all(),
    }
}

/// Removes a directory in which a restore or salvage did not finish.
///
/// Returns false if the directory has no marker of such an operation.
pub fn remove_unfinished(path: &Path) -> Result<bool, StoreError> {
    let text = fs::read_to_string(path.join(NAME)).unwrap_or_default();
    if !operation_of(&text).is_some_and(Operation::starts_over) {
        return Ok(false);
    }
    // A process that is still writing the directory holds the lock.
    let _lock = StoreDir::new(path)?;
    let failed = |error: io::Error| StoreError::Open {
        path: path.to_owned(),
        reason: open_error::io_reason("the files of an unfinished earlier run cannot be removed", &error),
    };
    // The marker is removed last, so that an interruption leaves a directory that is still marked.
    for file in fs::read_dir(path).map_err(failed)? {
        let file = file.map_err(failed)?;
        if file.path().is_dir() {
            fs::remove_dir_all(file.path()).map_err(failed)?;
        } else if file.file_name() != NAME {
            fs::remove_file(file.path()).map_err(failed)?;
        }
    }
    fs::remove_dir_all(path).map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{
        engine::Engine,
        offline::inspect::Inspection,
        tables::{
            DiskOptions,
            contract::{Table, Tables},
            files::WATERMARK,
            meta::{FORMAT, FORMAT_KEY},
            open,
        },
    };

    #[tokio::test]
    async fn store_with_marker_is_rejected_with_next_step() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let opened = |operation| open(DiskOptions { operation, ..DiskOptions::new(&path) });
        opened(None).unwrap().close().await.unwrap();
        for operation in Operation::ALL {
            begin(&path, operation).unwrap();
            let rejected = opened(None).err().unwrap().to_string();
            assert!(rejected.contains(&format!("Run `{}` again", operation.command())), "{rejected}");
            let other = if operation == Operation::Import { Operation::Restore } else { Operation::Import };
            assert!(opened(Some(other)).is_err(), "{other:?} in a directory marked by {operation:?}");
            let inspection = Inspection::open(&path).unwrap();
            assert!(
                inspection.damage().iter().any(|damage| rejected.contains(&damage.what)),
                "{:?}",
                inspection.damage()
            );
            end(&path).unwrap();
        }
        // A torn write of the marker.
        fs::write(path.join(NAME), "").unwrap();
        assert!(opened(None).is_err());
        end(&path).unwrap();
        opened(None).unwrap().close().await.unwrap();
    }

    #[tokio::test]
    async fn interrupted_import_resumes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let importing = || open(DiskOptions { operation: Some(Operation::Import), ..DiskOptions::new(&path) }).unwrap();
        importing().close().await.unwrap();
        assert!(open(DiskOptions::new(&path)).is_err(), "the import has not finished");
        let store = importing();
        store.close().await.unwrap();
        end(&path).unwrap();
        drop(store);
        open(DiskOptions::new(&path)).unwrap().close().await.unwrap();
    }

    /// Sets the format of a store.
    fn set_format(path: &Path, format: &[u8]) {
        let engine = open::create(path, Operation::Import).unwrap();
        engine.put(Table::Meta, FORMAT_KEY, format).unwrap();
        engine.checkpoint().unwrap();
        drop(engine);
        end(path).unwrap();
    }

    #[tokio::test]
    async fn rejected_import_leaves_store_without_marker() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        open(DiskOptions::new(&path)).unwrap().close().await.unwrap();
        let import = |namespace: Option<&str>| {
            let (operation, namespace) = (Some(Operation::Import), namespace.map(str::to_owned));
            let rejected = open(DiskOptions { namespace, operation, ..DiskOptions::new(&path) }).err();
            assert_eq!(reason(&path).unwrap(), None, "expected no marker after {rejected:?}");
            rejected.expect("a rejection")
        };
        assert!(matches!(import(Some("other")), StoreError::Incompatible(_)));
        open(DiskOptions::new(&path)).unwrap().close().await.unwrap();
        let aside = home.path().join("aside");
        fs::rename(path.join(WATERMARK), &aside).unwrap();
        assert!(matches!(import(None), StoreError::Damaged(_)));
        fs::rename(&aside, path.join(WATERMARK)).unwrap();
        open(DiskOptions::new(&path)).unwrap().close().await.unwrap();
        set_format(&path, &[FORMAT, b"0"].concat());
        assert!(matches!(import(None), StoreError::Incompatible(_)));
    }
}
