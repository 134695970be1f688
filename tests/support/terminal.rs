//! Runs a command on a pseudo-terminal, and collects what it writes there.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::ffi::OsStringExt as _,
    process::Command,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::server::Process;

/// Longest time until the expected text is on the terminal.
const TEXT_TIMEOUT: Duration = Duration::from_secs(120);

/// A command that runs on a terminal of 80 columns and 40 rows.
pub struct Terminal {
    /// The command.
    pub process: Process,
    written: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    /// Starts a command with standard output and standard error on a new terminal.
    pub fn spawn(command: &mut Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&terminal).expect("the terminal is granted");
        unlockpt(&terminal).expect("the terminal is unlocked");
        let name = ptsname(&terminal, Vec::new()).expect("the terminal has a name");
        let name = std::ffi::OsString::from_vec(name.into_bytes());
        let end = OpenOptions::new().read(true).write(true).open(name).expect("the terminal opens");
        let size = Winsize { ws_row: 40, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&end, size).expect("the size is set");
        let error = end.try_clone().expect("a second handle");
        let process = Process::new(command.env("TERM", "xterm").stdout(end).stderr(error).spawn().expect("it starts"));
        // The command holds copies of both handles, which would keep the terminal open.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let written = Arc::new((Mutex::default(), Condvar::new()));
        let mut source = File::from(terminal);
        let target: Arc<(Mutex<String>, Condvar)> = written.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // When the last process has closed the terminal, the read fails.
            while let Ok(read @ 1..) = source.read(&mut bytes) {
                target.0.lock().expect("no panic").push_str(&String::from_utf8_lossy(&bytes[..read]));
                target.1.notify_all();
            }
        });
        Self { process, written }
    }

    /// Waits until a condition holds for everything written so far, and returns that.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + TEXT_TIMEOUT;
        let mut written = self.written.0.lock().expect("no panic");
        while !holds(&written) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: not within {TEXT_TIMEOUT:?}; on the terminal:\n{written:?}");
            written = self.written.1.wait_timeout(written, left).expect("no panic").0;
        }
        written.clone()
    }
}
