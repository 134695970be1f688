//! Reads the state of a process from `/proc`, and sends signals.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal to a process. The process may have exited.
pub fn signal(pid: i32, signal: Signal) {
    _ = kill_process(Pid::from_raw(pid).expect("a process id"), signal);
}

/// Returns the CPU time that a process has used.
pub fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The name in brackets may contain spaces. After it, user and system time are fields 14 and 15 of the line.
    let (_, after) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().expect("a number");
    // Linux reports 100 ticks per second.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Reports whether a process has been stopped by a signal.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    stat.rsplit_once(')').is_some_and(|(_, after)| after.trim_start().starts_with('T'))
}

/// Returns the resident memory of a process, in bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// Returns the number of descriptors that a process has open.
pub fn open_descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count()
}
