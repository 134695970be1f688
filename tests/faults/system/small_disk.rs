//! A disk that is small, and what else is on it.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{env, support::server::Home};

pub const MIB: u64 = 1 << 20;

/// A file system in memory, of a given size. Gone with this.
#[derive(Debug)]
pub struct Disk(pub PathBuf);

impl Disk {
    /// Mounts one; `None`, said aloud, where that is not allowed.
    pub fn mount(home: &Home, bytes: u64) -> Option<Self> {
        let path = home.path("disk");
        std::fs::create_dir(&path).expect("a directory");
        let size = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "mesa-test"]).arg(&path).output();
        let here = mounted.is_ok_and(|output| output.status.success());
        (here || env::missing("the right to mount a tmpfs", "a disk that fills up")).then_some(Self(path))
    }

    /// Puts a file there, of so many bytes or as many as there is room for; how many those were.
    pub fn put_ballast(&self, bytes: u64) -> u64 {
        let mut file = File::create(self.ballast()).expect("a file");
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

    /// Bytes that are free there.
    pub fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).expect("it is there");
        disk.f_bavail * disk.f_frsize
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("of-another-process")
    }

    /// Fills it, and fills it again where the server gives something back.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.ballast()).expect("a file");
        for part in [1 << 16, 4096, 1] {
            while file.write(&vec![1; part]).is_ok_and(|count| count > 0) {}
        }
    }

    /// Takes so many bytes from the end of what was put there.
    pub fn give_back(&self, bytes: u64) {
        let file = File::options().write(true).open(self.ballast()).expect("it is there");
        let length = file.metadata().expect("a file").len();
        file.set_len(length.saturating_sub(bytes)).expect("it is cut");
    }

    /// Removes what was put there.
    pub fn remove_ballast(&self) {
        std::fs::remove_file(self.ballast()).expect("it is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failed assertion the server may still be there.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Bytes of the files in a directory.
pub fn bytes_in(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let bytes = |file: std::fs::DirEntry| {
        // What is not needed any more goes while it is looked at.
        if file.path().is_dir() { bytes_in(&file.path()) } else { file.metadata().map_or(0, |file| file.len()) }
    };
    files.map(bytes).sum()
}

/// Waits for something.
pub fn until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
