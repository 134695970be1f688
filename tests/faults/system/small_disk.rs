//! A small file system, and a file in it that stands for another process's data.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{env, support::server::Home};

pub const MIB: u64 = 1 << 20;

/// A mounted tmpfs of a given size. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs. `None`: the test may not mount, and this is printed.
    pub fn mount(home: &Home, bytes: u64) -> Option<Self> {
        let path = home.path("disk");
        std::fs::create_dir(&path).expect("a directory");
        let size = format!("size={bytes},mode=0700");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "mesa-test"]).arg(&path).output();
        let mounted = output.is_ok_and(|output| output.status.success());
        (mounted || env::report_missing("the right to mount a tmpfs", "a disk that fills up")).then_some(Self(path))
    }

    /// Creates the other process's file, of this size or as large as the disk permits. Returns its size.
    pub fn create_filler(&self, bytes: u64) -> u64 {
        let mut file = File::create(self.filler()).expect("a file");
        let part = vec![1; 1 << 16];
        let mut written = 0;
        while written < bytes {
            match file.write(&part) {
                Ok(count) => written += count as u64,
                Err(_) => break,
            }
        }
        written
    }

    /// Returns the free bytes.
    pub fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).expect("the disk is mounted");
        disk.f_bavail * disk.f_frsize
    }

    fn filler(&self) -> PathBuf {
        self.0.join("of-another-process")
    }

    /// Extends the other process's file until the disk is full. May be called again after the server has freed space.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.filler()).expect("a file");
        for part in [1 << 16, 4096, 1] {
            while file.write(&vec![1; part]).is_ok_and(|count| count > 0) {}
        }
    }

    /// Shortens the other process's file by this number of bytes.
    pub fn shrink_filler(&self, bytes: u64) {
        let file = File::options().write(true).open(self.filler()).expect("the filler");
        let length = file.metadata().expect("a file").len();
        file.set_len(length.saturating_sub(bytes)).expect("the file is truncated");
    }

    /// Removes the other process's file.
    pub fn remove_filler(&self) {
        std::fs::remove_file(self.filler()).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy unmount: after a failed assertion the server may still have files open.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sums the bytes of the files in a directory.
pub fn bytes_in(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let bytes = |file: std::fs::DirEntry| {
        // The server may remove a file meanwhile, which then counts as empty.
        if file.path().is_dir() { bytes_in(&file.path()) } else { file.metadata().map_or(0, |file| file.len()) }
    };
    files.map(bytes).sum()
}
