use std::process::Command;

use super::*;

/// A time with a fraction of a millisecond that truncation would lose.
const START: Duration = Duration::new(1_700_000_000, 123_999_700);

/// Holds a clock whose source and calendar a test sets, in nanoseconds.
struct TestClock {
    clock: Clock,
    source: Arc<AtomicU64>,
    calendar: Duration,
}

impl TestClock {
    fn new(calendar: Duration, last_ms: u64) -> Self {
        let source = Arc::new(AtomicU64::new(77_000_000_900));
        let clock = Clock::start(Source::Test(source.clone()), || calendar, last_ms, Arc::default());
        Self { clock, source, calendar }
    }

    /// Advances both clocks.
    fn advance(&mut self, time: Duration) {
        self.source.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        self.calendar += time;
    }
}

#[test]
fn clock_after_suspend_includes_suspended_time() {
    let mut test = TestClock::new(START, 0);
    let before = test.clock.now_ms();
    test.advance(Duration::from_secs(600));
    assert_eq!(test.clock.now_ms() - before, 600_000);
}

#[test]
fn clock_after_calendar_step_is_unchanged() {
    // The calendar is read only at the start, so a step has no effect.
    let read = std::cell::Cell::new(0);
    let source = Arc::new(AtomicU64::new(0));
    let calendar = || {
        read.set(read.get() + 1);
        START
    };
    let clock = Clock::start(Source::Test(source.clone()), calendar, 0, Arc::default());
    let reads = read.get();
    let before = clock.now_ms();
    source.fetch_add(5_000_000, Ordering::Relaxed);
    assert_eq!((clock.now_ms() - before, read.get()), (5, reads));
}

#[test]
fn clock_is_never_behind_earlier_calendar_reading() {
    for nanos in (0..4_000_000).step_by(333_331) {
        let mut test = TestClock::new(START + Duration::from_nanos(nanos), 0);
        for _ in 0..50 {
            test.advance(Duration::from_nanos(127_773));
            assert_eq!(test.clock.now_ms(), test.calendar.as_millis() as u64, "{nanos} ns later");
        }
    }
    // The same for the clock of the machine.
    for _ in 0..2000 {
        let clock = Clock::new(0, Arc::default());
        let earlier = millis(SystemTime::now());
        let now = clock.now_ms();
        assert!(now >= earlier, "{now} ms, and the calendar was at {earlier} ms earlier");
    }
}

#[test]
fn clock_with_calendar_set_back_starts_at_last_written_time() {
    let ahead = START.as_millis() as u64 + 3_600_000;
    assert_eq!(TestClock::new(START, ahead).clock.now_ms(), ahead);
    assert_eq!(TestClock::new(START, 1).clock.now_ms(), START.as_millis() as u64);
}

/// Compares with the uptime of the kernel, which counts suspended time. The two clocks differ only in a time namespace.
#[test]
#[cfg(target_os = "linux")]
fn machine_clock_counts_suspended_time() {
    const IN_NAMESPACE: &str = "MESA_TEST_TIME_NAMESPACE";
    let uptime = || -> f64 {
        let text = std::fs::read_to_string("/proc/uptime").expect("Linux has /proc/uptime");
        text.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("seconds since boot")
    };
    let (before, now, after) = (uptime(), since_boot().as_secs_f64(), uptime());
    // The uptime of the kernel is rounded to hundredths of a second.
    assert!((before - 0.02..after + 0.02).contains(&now), "{now} s, /proc/uptime {before} to {after} s");
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return;
    }
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--time", "--boottime", "1000000", program]);
        command
    };
    if !unshare("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: without time namespaces, the two clocks are equal");
        return;
    }
    let this = std::env::current_exe().expect("this test");
    let name = "store::clock::tests::machine_clock_counts_suspended_time";
    let output = unshare(&this.to_string_lossy()).args([name, "--exact"]).env(IN_NAMESPACE, "1").output();
    let output = output.expect("unshare has just worked");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
