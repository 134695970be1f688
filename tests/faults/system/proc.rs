//! What the system knows of a process, and signals to it.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal to a process that may have ended by now.
pub fn signal(pid: i32, signal: Signal) {
    _ = kill_process(Pid::from_raw(pid).expect("a process id"), signal);
}

/// Processor time a process has used.
pub fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The name in brackets may hold anything; what follows is numbers. User and system time are the 14th and 15th word.
    let (_, after) = stat.rsplit_once(')').expect("a name in brackets");
    let words: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| words[at].parse::<u64>().expect("a number");
    // A hundred a second, on every Linux there is.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Whether a process has been stopped by a signal.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    stat.rsplit_once(')').is_some_and(|(_, after)| after.trim_start().starts_with('T'))
}

/// Memory a process has in use, in bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// Descriptors a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count()
}
