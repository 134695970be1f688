//! Spare file descriptors, which are closed to open a file when the process has no descriptor left.

use std::{fs::File, io};

use parking_lot::Mutex;

use crate::embedded::tables::contract::Cause;

/// Number of spare descriptors.
const SPARE_DESCRIPTORS: usize = 4;

/// Holds descriptors that are closed to open a file.
#[derive(Debug, Default)]
pub struct SpareDescriptors(Mutex<Vec<File>>);

impl SpareDescriptors {
    /// Refills the spare descriptors with copies of `of`, as far as the system has descriptors.
    pub fn refill(&self, of: &File) {
        let mut spares = self.0.lock();
        while spares.len() < SPARE_DESCRIPTORS {
            let Ok(copy) = of.try_clone() else { return };
            spares.push(copy);
        }
    }

    /// Opens a file, and closes spare descriptors if the process has no descriptor left.
    pub fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                // Another thread may take the closed descriptor first, so this retries while there are spares.
                Err(error) if Cause::of(&error) == Cause::Exhausted && self.0.lock().pop().is_some() => {}
                opened => return opened,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_descriptors_are_closed_one_by_one() {
        let home = tempfile::tempdir().unwrap();
        let spares = SpareDescriptors::default();
        let of = File::open(home.path()).unwrap();
        spares.refill(&of);
        let mut tries = 0;
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!(tries, SPARE_DESCRIPTORS + 1);
        spares.refill(&of);
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!((tries, spares.0.lock().len()), (SPARE_DESCRIPTORS + 2, SPARE_DESCRIPTORS));
    }
}
