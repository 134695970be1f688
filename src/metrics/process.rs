//! Reads figures of this process from `/proc`, with the names that Prometheus clients use. Elsewhere there are none.

use std::{
    fs,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, Timespec, clock_gettime},
};

/// Clock ticks in a second, in which the kernel states times to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Time for which the number of open files is kept.
///
/// `/metrics` needs no key, and the kernel takes some milliseconds to list 10,000 files. So requests must not cause a count
/// each.
const COUNT_TTL: Duration = Duration::from_secs(1);

/// The last count of open files, and its time. Locked while the files are counted, so that one thread does it.
static OPEN_FILES: Mutex<Option<(Instant, u64)>> = Mutex::new(None);

/// Figures of this process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Processor time in user and system mode, in seconds.
    pub cpu_seconds: f64,
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Open file descriptors, counted within the last second.
    pub open_files: u64,
    /// Limit of open file descriptors.
    pub files_max: u64,
    /// Start of the process, in seconds of the Unix epoch.
    pub started: f64,
}

impl Process {
    /// Reads the figures. `None`: this system has no `/proc`.
    ///
    /// May take some milliseconds with 10,000 open files, so it must not run on the event loop.
    #[must_use]
    pub fn read() -> Option<Self> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Some(Self {
            cpu_seconds: seconds(cpu),
            resident_bytes: resident_bytes()?,
            open_files: open_files(&OPEN_FILES, || Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64))?,
            files_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            started: started()?,
        })
    }
}

/// Returns the number of open files: the last count, or a new one after [`COUNT_TTL`].
fn open_files(last: &Mutex<Option<(Instant, u64)>>, count: impl FnOnce() -> Option<u64>) -> Option<u64> {
    let mut last = last.lock();
    if let Some((_, open)) = last.filter(|(at, _)| at.elapsed() < COUNT_TTL) {
        return Some(open);
    }
    let open = count()?;
    // The time after the count: a slow one is not repeated at once.
    *last = Some((Instant::now(), open));
    Some(open)
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kilobytes.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may have spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(19)?.parse().ok()?;
    let since_boot = clock_gettime(ClockId::Boottime);
    // Not the time of the boot in `/proc/stat`, which a hardened unit hides (`ProcSubset=pid`).
    let age = seconds(since_boot) - ticks / TICKS_PER_SECOND;
    Some(seconds(clock_gettime(ClockId::Realtime)) - age)
}

fn seconds(time: Timespec) -> f64 {
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Encodes the figures for a scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(process) = Process::read() else { return Ok(()) };
        let mut add = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let cpu = ConstCounter::new(process.cpu_seconds);
        add("process_cpu_seconds", "Processor time in user and system mode, in seconds.", &cpu)?;
        let resident = ConstGauge::new(process.resident_bytes);
        add("process_resident_memory_bytes", "Memory in RAM.", &resident)?;
        add("process_open_fds", "Open file descriptors.", &ConstGauge::new(process.open_files))?;
        add("process_max_fds", "Limit of open file descriptors.", &ConstGauge::new(process.files_max))?;
        let started = ConstGauge::new(process.started);
        add("process_start_time_seconds", "Start of the process, in seconds of the Unix epoch.", &started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_of_a_burst_of_scrapes_are_counted_once() {
        let (last, mut counts) = (Mutex::new(None), 0);
        let mut scrape = || {
            open_files(&last, || {
                counts += 1;
                Some(counts)
            })
        };
        assert_eq!([scrape(), scrape(), scrape()], [Some(1); 3]);
        last.lock().as_mut().unwrap().0 -= COUNT_TTL;
        assert_eq!((scrape(), scrape()), (Some(2), Some(2)));
    }

    #[test]
    fn process_figures_are_plausible() {
        let process = Process::read();
        assert_eq!(process.is_some(), cfg!(target_os = "linux"), "Linux systems have /proc");
        let Some(process) = process else { return };
        let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs_f64();
        assert!(process.started <= now + 2.0 && process.started > now - 86_400.0, "{process:?}");
        assert!(process.resident_bytes > 1 << 20 && process.resident_bytes < 1 << 40, "{process:?}");
        assert!(process.open_files > 2 && process.open_files <= process.files_max, "{process:?}");
        assert!(process.cpu_seconds > 0.0, "{process:?}");
    }
}
