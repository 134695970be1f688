//! Measures how the embedded store grows: CPU time, memory, disk and the time to open, for many users.
//!
//! For each size, one process appends messages of 256 bytes to users in turn, with 1,000 callers, and ends 75 s later
//! without closing its store, as if killed. Another process opens the store. `cargo bench --bench scale -- 1000000x1` measures one size:
//! users, and messages of each. `x0`: one message of each, which is acknowledged. `--svg FILE` also draws plots of all sizes.
#![allow(missing_docs)]

mod support;

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mesa::{
    embedded::tables::{DiskOptions, open},
    message::UserId,
    store::{Append, Limits, SessionReport, Store, StoreError},
};
use support::{
    payload,
    svg::{self, Panel, Series},
};

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sizes: users, and pending messages of each.
const SIZES: &[(usize, usize)] =
    &[(10_000, 1), (100_000, 1), (1_000_000, 1), (10_000, 10), (100_000, 10), (1_000_000, 0)];

/// Callers that append at the same time.
const CALLERS: usize = 1_000;

/// Time after the last message, in which messages are flushed and unused logs leave memory.
const IDLE_TIME: Duration = Duration::from_secs(75);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["fill", path, users, pending] => fill(Path::new(path), number(users), number(pending)),
        ["open", path] => reopen(Path::new(path)),
        ["--svg", file] => {
            if let Some(directory) = Path::new(file).parent() {
                fs::create_dir_all(directory).expect("a directory");
            }
            let measured = measure_all(&[]);
            fs::write(file, draw(&measured)).expect("a file that can be written");
        }
        ref sizes => _ = measure_all(sizes),
    }
}

/// Figures of one size.
struct Figures {
    users: usize,
    pending: usize,
    /// CPU of the store for each message, in microseconds.
    store: f64,
    /// Memory in megabytes: at its peak, and a minute later.
    peak: f64,
    idle: f64,
    disk: f64,
    /// Seconds to open the store after a kill.
    open: f64,
}

/// Measures these sizes, or all, and prints a row for each.
fn measure_all(sizes: &[&str]) -> Vec<Figures> {
    println!("users x pending  store µs  callers µs  peak MB  idle MB  disk MB  open s  open CPU s  opened MB");
    let is_wanted =
        |(users, pending): &(usize, usize)| sizes.is_empty() || sizes.contains(&format!("{users}x{pending}").as_str());
    SIZES.iter().copied().filter(is_wanted).map(|(users, pending)| measure(users, pending)).collect()
}

/// Draws the figures of all sizes against the number of users.
fn draw(measured: &[Figures]) -> String {
    let series = |name, pending: usize, figure: fn(&Figures) -> f64| {
        let of = measured.iter().filter(|one| one.pending == pending);
        Series { name, points: of.map(|one| (one.users as f64, figure(one))).collect() }
    };
    let both = |title, figure| Panel {
        title,
        series: vec![series("1 message each", 1, figure), series("10 messages each", 10, figure)],
    };
    let memory = vec![
        series("peak, 1 each", 1, |one| one.peak),
        series("peak, 10 each", 10, |one| one.peak),
        series("a minute later, 1 each", 1, |one| one.idle),
        series("a minute later, 10 each", 10, |one| one.idle),
    ];
    let panels = [
        both("CPU of the store for a message, µs", |one| one.store),
        Panel { title: "memory, MB", series: memory },
        both("disk, MB", |one| one.disk),
        both("open after a kill, s", |one| one.open),
    ];
    svg::draw(&panels, "users")
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

/// Measures one size in processes of their own, and prints a row.
fn measure(users: usize, pending: usize) -> Figures {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path in UTF-8");
    let filled = run(&["fill", path, &users.to_string(), &pending.to_string()]);
    let disk = size_of_directory(directory.path()).expect("the files of the store") as f64 / 1e6;
    let opened = run(&["open", path]);
    let [store, callers, peak, idle] = filled[..] else { panic!("expected four figures: {filled:?}") };
    let [seconds, open_cpu, open_peak] = opened[..] else { panic!("expected three figures: {opened:?}") };
    println!(
        "{:>15}  {store:>8.1}  {callers:>10.1}  {peak:>7.0}  {idle:>7.0}  {:>7.0}  {seconds:>6.2}  {open_cpu:>10.2}  \
         {open_peak:>9.0}",
        format!("{users} x {pending}"),
        disk,
    );
    Figures { users, pending, store, peak, idle, disk, open: seconds }
}

/// Runs this program, which prints figures. It ends without closing its store.
fn run(args: &[&str]) -> Vec<f64> {
    let program = std::env::current_exe().expect("a path");
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output().expect("a process");
    assert!(output.status.success(), "{args:?}: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("figures");
    text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect()
}

fn options(path: &Path) -> DiskOptions {
    let limits = Limits { free_bytes: 0, ..Limits::default() };
    DiskOptions { limits, queue: 2 * CALLERS, ..DiskOptions::new(path) }
}

fn user(n: usize) -> UserId {
    UserId::new(&format!("user-{n:07}")).expect("an id")
}

/// Appends a message. While the store is busy, which it reports after 5 s, the caller retries.
async fn append(store: &dyn Store, append: Append) {
    loop {
        match store.append(append.clone()).await {
            Err(StoreError::Busy(_)) => {}
            appended => return drop(appended.expect("a commit")),
        }
    }
}

/// Fills a store. Prints CPU time for each message, of the store and of its callers, in microseconds, and peak and idle
/// memory in megabytes.
fn fill(path: &Path, users: usize, pending: usize) {
    let runtime = support::runtime();
    let _in_runtime = runtime.enter();
    let store = open(options(path)).expect("a store");
    let (before, callers_before) = (cpu_seconds(), callers_cpu_seconds());
    let (messages, payload) = (users * pending.max(1), payload());
    runtime.block_on(async {
        for first in (0..messages).step_by(CALLERS) {
            let appends = (first..messages.min(first + CALLERS))
                .map(|n| append(&*store, Append::new(payload.clone(), vec![user(n % users)])));
            join_all(appends).await;
            for n in (first..messages.min(first + CALLERS)).filter(|_| pending == 0) {
                store.report(&user(n), SessionReport { acknowledged: Some((1, 1)), ..SessionReport::default() });
            }
        }
    });
    let end = Instant::now() + IDLE_TIME;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(Duration::from_secs(1)));
    }
    let callers = (callers_cpu_seconds() - callers_before) * 1e6 / messages as f64;
    let store = (cpu_seconds() - before) * 1e6 / messages as f64 - callers;
    println!("{store} {callers} {} {}", memory_mb("VmHWM:"), memory_mb("VmRSS:"));
    // As if killed.
    std::process::exit(0);
}

/// Opens a store, and prints the seconds, the seconds of CPU time, and the peak memory in megabytes.
fn reopen(path: &Path) {
    let runtime = support::runtime();
    let _in_runtime = runtime.enter();
    let (before, start) = (cpu_seconds(), Instant::now());
    let store = open(options(path)).expect("a store");
    let elapsed = start.elapsed().as_secs_f64();
    println!("{elapsed} {} {}", cpu_seconds() - before, memory_mb("VmHWM:"));
    drop(store);
    std::process::exit(0);
}

/// Returns the CPU time of this process in seconds.
fn cpu_seconds() -> f64 {
    cpu_seconds_in(&fs::read_to_string("/proc/self/stat").expect("Linux"))
}

/// Returns the CPU time of the callers in seconds: of this thread and of the runtime. All other threads are the store's.
fn callers_cpu_seconds() -> f64 {
    let mut seconds = 0.0;
    for task in fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        // A thread may end meanwhile.
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let is_main = task.file_name().to_str() == Some(&std::process::id().to_string());
        if is_main || stat.contains("(tokio") {
            seconds += cpu_seconds_in(&stat);
        }
    }
    seconds
}

/// Returns the CPU time in a file `stat` (`man 5 proc`: fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds_in(stat: &str) -> f64 {
    let fields = stat.rsplit(')').next().expect("fields after the name");
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}

/// Returns a memory figure of this process in megabytes.
fn memory_mb(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of this name");
    let kib: f64 = line.split_whitespace().nth(1).expect("a figure").parse().expect("a number");
    kib * 1024.0 / 1e6
}

/// Returns the bytes on the disk of all files in a directory.
fn size_of_directory(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        bytes += if metadata.is_dir() {
            size_of_directory(&path)?
        } else {
            std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
        };
    }
    Ok(bytes)
}
