//! Detects missing parts of a store: it is an incomplete copy, or files were moved or deleted.
//!
//! The first start of a store creates its parts one after another, and a power cut may end it between any two. So a
//! part counts as missing only if data was written that follows it:
//!
//! - `log/db` is durable before anything is written into the other parts.
//! - `mark`, `wal` and `value-log` are durable before the table `meta` has the format.
//!
//! Files within `wal` and `value-log` are not checked here: the WAL is checked against the sync watermark, and an
//! unreadable block affects one user.

use std::{fmt, fs, io, path::Path};

use super::files::{SLED_DIR, SLED_FILE, VALUE_LOG, WAL, WATERMARK};
use crate::embedded::{
    file_io,
    offline::sled_file::RawTables,
    tables::{contract::Table, meta::FORMAT_KEY},
};

/// Names a missing part of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::embedded) enum MissingPart {
    /// sled's file.
    Tables,
    Watermark,
    Wal,
    ValueLog,
}

impl MissingPart {
    /// Finds the first missing part other than the tables.
    pub fn find_other(path: &Path, tables: &RawTables) -> io::Result<Option<Self>> {
        if tables.get(Table::Meta, FORMAT_KEY)?.is_none() {
            return Ok(None);
        }
        for part in [Self::Watermark, Self::Wal, Self::ValueLog] {
            if !path.join(part.name()).try_exists()? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Detects that sled's data file is missing although other parts were written.
    pub fn find_tables(path: &Path) -> io::Result<Option<Self>> {
        let length = |file: &Path| match fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            file => file.map(|file| file.len()),
        };
        if length(&path.join(SLED_DIR).join(SLED_FILE))? > 0 {
            return Ok(None);
        }
        let mut written = length(&path.join(WATERMARK))?;
        for directory in [WAL, VALUE_LOG].map(|name| path.join(name)) {
            for number in file_io::file_numbers(&directory)? {
                written += length(&directory.join(file_io::file_name(number)))?;
            }
        }
        Ok((written > 0).then_some(Self::Tables))
    }

    /// Returns the name of the part in the store's directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tables => "log/db",
            Self::Watermark => WATERMARK,
            Self::Wal => WAL,
            Self::ValueLog => VALUE_LOG,
        }
    }

    /// Describes how to open the store without the part.
    ///
    /// Only the watermark can be replaced. Without it, lost synced data at the end of the files is not detected.
    fn next_step(self) -> &'static str {
        match self {
            Self::Watermark => "; if only that file was lost, create an empty one in its place",
            _ => "",
        }
    }
}

impl fmt::Display for MissingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if matches!(self, Self::Wal | Self::ValueLog) { "directory" } else { "file" };
        let state = if *self == Self::Tables { "missing or empty" } else { "missing" };
        write!(
            f,
            "its {what} `{}` is {state}, so messages may be missing. If this is a copy, copy the whole directory again while no \
             server uses it{}",
            self.name(),
            self.next_step()
        )
    }
}
