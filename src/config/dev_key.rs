//! Keeps the API key that `--dev` generates in a file in the store's directory, so that it is the same after a restart.

use std::{
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use super::Config;
use crate::util::read_bounded::read_bounded;

/// Name of the file. The store accepts it in its directory.
const FILE: &str = "dev-api-key";

/// Digits of a generated key.
const DIGITS: usize = 32;

/// Returns the path of the file; `None` for a store in Redis, which has no directory.
fn path(config: &Config) -> Option<PathBuf> {
    config.redis.is_none().then(|| config.store.path.join(FILE))
}

/// Reads the key of an earlier start.
pub(super) fn read(config: &Config, warnings: &mut Vec<String>) -> Option<String> {
    let path = path(config)?;
    match read_bounded(&path, DIGITS as u64 + 1) {
        Ok(text) => {
            let key = std::str::from_utf8(&text).ok().map(str::trim_end).filter(|key| is_generated(key));
            if key.is_none() {
                warnings.push(format!("{} has no API key of mesa, so a new key replaces it", path.display()));
            }
            key.map(str::to_owned)
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => {
            let path = path.display();
            warnings
                .push(format!("{path} cannot be read ({error}), so the API key is a new one. Check its permissions"));
            None
        }
    }
}

/// Returns whether a text may be a key that `--dev` has generated.
fn is_generated(key: &str) -> bool {
    key.len() == DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Writes the key for later starts, readable by its owner only. Returns the path of the file, or `None` if the store has no
/// directory.
pub(super) fn keep(config: &Config, key: &str) -> io::Result<Option<PathBuf>> {
    let Some(path) = path(config) else { return Ok(None) };
    if std::fs::read(&path).is_ok_and(|text| text.trim_ascii_end() == key.as_bytes()) {
        return Ok(Some(path));
    }
    // Such a file has the mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    writeln!(file, "{key}")?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::{Sources, keep_dev_key, load};

    #[test]
    fn kept_key_is_read_by_the_next_start_and_an_unusable_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let start = || {
            let flags = vec![("store.path".to_owned(), path.into(), "--store-path".to_owned())];
            load(&Sources { dev: true, flags, ..Sources::default() }).unwrap()
        };
        let first = start();
        let file = keep_dev_key(&first).unwrap().unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let second = start();
        assert_eq!(
            (&second.generated_api_key, &second.config.api.keys),
            (&first.generated_api_key, &first.config.api.keys)
        );
        for unusable in ["", "short", "0123456789abcdef0123456789abcdeg", "0123456789abcdef0123456789abcdef0"] {
            std::fs::write(&file, unusable).unwrap();
            let next = start();
            assert!(next.generated_api_key.as_ref().is_some_and(|key| is_generated(key) && key != unusable));
            assert!(
                next.warnings.iter().any(|warning| warning.contains("a new key replaces it")),
                "{:?}",
                next.warnings
            );
            keep_dev_key(&next).unwrap();
            assert_eq!(start().generated_api_key, next.generated_api_key);
        }
    }
}
