//! File access of the WAL, the value log and the offline reader: reads at an offset, and files with numbers as names.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

/// Bytes in memory while a part of a file is written once more.
const REWRITE_BYTES: usize = 1 << 20;

/// Reads `length` bytes of a file from `at` on, or fewer at its end.
pub fn read_at(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = fill(file, at, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
thread_local! {
    /// Counts the calls of [`fill`] in this thread.
    pub static FILLS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Fills `bytes` from a file, from `at` on. Returns the number of bytes read, which is lower at the end of the file.
pub fn fill(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
    #[cfg(test)]
    FILLS.set(FILLS.get() + 1);
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Converts an offset or a length in a file, which are stored in 32 bits.
///
/// # Errors
/// Fails if it does not fit. The files of a store are far shorter.
pub fn to_u32(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::other(format!("a file of the store is too long: {bytes} bytes")))
}

/// Writes bytes `from..to` of a file once more, so that the next sync writes them to the disk.
///
/// After a failed sync, Linux may take changed pages for written although the disk lacks them.
pub fn rewrite(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).map_or(REWRITE_BYTES, |left| left.min(REWRITE_BYTES));
        let bytes = read_at(file, at, length)?;
        if bytes.is_empty() {
            break;
        }
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Creates an empty file. Its name is durable once the directory is synced.
pub fn create(directory: &Path, name: &str) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(directory.join(name))
}

/// Creates a directory if it is missing, and makes its name durable.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir(directory)?;
    directory.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Lists the numbers of the files in a directory, ascending. Files with other names are ignored.
pub fn file_numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut numbers = Vec::new();
    for file in files {
        numbers.extend(file?.file_name().to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the name of the file with this number: 16 hexadecimal digits, so that names sort as numbers do.
pub fn file_name(number: u64) -> String {
    format!("{number:016x}")
}

fn number_of(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_numbers_are_ascending_and_omit_other_names() {
        let home = tempfile::tempdir().unwrap();
        for number in [300, 2, u64::MAX] {
            create(home.path(), &file_name(number)).unwrap();
        }
        fs::write(home.path().join("12"), b"").unwrap();
        assert_eq!(file_numbers(home.path()).unwrap(), [2, 300, u64::MAX]);
        assert_eq!(file_numbers(&home.path().join("none")).unwrap(), [0; 0]);
    }
}
