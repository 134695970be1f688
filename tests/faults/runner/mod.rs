//! Runs servers one after the other on one store, and injects faults.
//!
//! A run consists of rounds. Each round has its own history: some faults under load, then a drain that receives all
//! pending messages, then the checker. So logs, histories and memory stay as small in a run of 1,000 faults as in one
//! of 10. Every second round begins with a fault while nothing is pending.
//!
//! - `scenario`: parameters of a run
//! - `server`: starts servers, injects faults
//! - `stats`: statistics of a run

mod scenario;
mod server;
mod stats;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

pub use self::scenario::{Fault, Scenario, Until, any_power_cut};
use self::stats::Stats;
use crate::{
    checker::Counts,
    history::{Event, Recorder},
    support::{
        http::Http,
        seeded_rng::Random,
        server::{Home, Server},
    },
    workload::{self, Context, CurrentServer, RunningServer},
};

#[cfg(target_os = "linux")]
use crate::fuse_disk::MountedDisk as Disk;
#[cfg(not(target_os = "linux"))]
use unsupported::Disk;

/// On the simulated disk, one round in this many starts with an empty store.
const EMPTY_STORE_ONE_IN: u64 = 4;

/// Kills while a server creates a store.
const CREATION_KILLS: u64 = 3;

/// Users whose logs are read over HTTP after every start.
const LOGS_READ_PER_START: u64 = 4;

/// Limit of additional rounds while no power cut has removed anything: on a slow machine few writes are unsynced at a
/// cut.
const EXTRA_ROUNDS_MAX: u32 = 10;

/// State of a run.
pub struct Runner<'a> {
    scenario: &'a Scenario,
    seed: u64,
    random: Random,
    home: Home,
    runtime: tokio::runtime::Runtime,
    /// Directory of the histories until they are checked.
    histories: tempfile::TempDir,
    context: Context,
    server: Option<Server>,
    /// Declared after the server, which must be dropped before the disk.
    disk: Option<Disk>,
    /// Number of the last server that was started.
    server_number: u64,
    /// The number of each backend's next message.
    next: Vec<u64>,
    heads: BTreeMap<String, u64>,
    rounds: u64,
    connections: Arc<AtomicU64>,
    stats: Stats,
}

impl<'a> Runner<'a> {
    /// # Errors
    /// If the scenario needs the simulated disk, and FUSE is not available.
    pub fn new(scenario: &'a Scenario, seed: u64) -> Result<Self, String> {
        let mut home = Home::with_settings(scenario.settings);
        let disk = if scenario.simulated_disk { Some(Disk::new().map_err(|error| error.to_string())?) } else { None };
        if let Some(disk) = &disk {
            home.move_store(disk.path("store"));
        }
        if let Some(failpoint) = scenario.failpoint {
            home.set_variable("MESA_FAILPOINT", failpoint);
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let histories = tempfile::Builder::new().prefix("mesa-history-").tempdir().expect("a temporary directory");
        let connections = Arc::new(AtomicU64::new(1));
        let context = context(scenario, &histories, 0, &runtime, &connections);
        Ok(Self {
            scenario,
            seed,
            random: Random::from_seed(seed),
            home,
            runtime,
            histories,
            context,
            server: None,
            disk,
            server_number: 0,
            next: vec![0; scenario.params.backends as usize],
            heads: BTreeMap::new(),
            rounds: 0,
            connections,
            stats: Stats::default(),
        })
    }

    /// Runs rounds until the run is long enough, and prints the statistics.
    ///
    /// # Errors
    /// With the violation, and the path of its history.
    pub fn run(mut self, until: Until) -> Result<(), String> {
        let start = Instant::now();
        let (mut result, mut extra_rounds) = (Ok(()), 0);
        while result.is_ok() {
            let faults = self.stats.faults();
            let left = match until {
                Until::Faults(faults_max) => faults_max.saturating_sub(faults),
                Until::Time(time) if start.elapsed() < time => u64::MAX,
                Until::Time(_) => 0,
            };
            if left == 0 && (self.had_effect() || extra_rounds == EXTRA_ROUNDS_MAX) {
                break;
            }
            extra_rounds += u32::from(left == 0);
            result = self.run_round(faults + left.clamp(1, self.scenario.faults_per_round));
            if self.scenario.progress {
                self.stats.print_progress(self.scenario.name, self.rounds, start.elapsed());
            }
        }
        self.stats.print(self.scenario.name, self.seed, start.elapsed());
        if result.is_ok() && !self.had_effect() {
            return Err("expected a power cut that removes writes, and none did: nothing was tested".into());
        }
        result
    }

    /// Reports whether a power cut has removed writes, or the scenario has no power cuts.
    fn had_effect(&self) -> bool {
        !self.scenario.simulated_disk || self.stats.has_losses()
    }

    /// Runs a round, until there were `faults` in the whole run.
    fn run_round(&mut self, faults: u64) -> Result<(), String> {
        self.rounds += 1;
        let empty_store = self.scenario.simulated_disk && self.rounds > 1 && self.random.one_in(EMPTY_STORE_ONE_IN);
        if empty_store {
            self.replace_store();
        }
        self.context = context(self.scenario, &self.histories, self.rounds, &self.runtime, &self.connections);
        let (durability, heads) = (self.scenario.durability.to_owned(), self.heads.clone());
        self.record(&Event::Run { seed: self.seed, durability, heads });
        if self.server.is_some() {
            self.record(&Event::Starting { server: self.server_number });
        }
        if empty_store || self.rounds == 1 {
            // The creation of a store must survive faults too.
            (0..CREATION_KILLS).for_each(|_| self.kill_during_start());
        }
        let mut result = if self.rounds.is_multiple_of(2) { self.kill_idle_server() } else { Ok(()) };
        let actors = workload::start(&self.context, &self.next, &mut self.random);
        while result.is_ok() && self.stats.faults() < faults {
            result = self.run_until_fault();
        }
        self.context.current.finish();
        self.next = actors.join(&self.context);
        let result = result.and_then(|()| self.drain());
        let checked = self.check();
        // A violation explains more than the failed operation.
        checked.and(result)
    }

    /// Replaces the store by an empty one.
    fn replace_store(&mut self) {
        if let Some(server) = self.server.take() {
            server.process.kill();
        }
        std::fs::remove_dir_all(self.home.store()).expect("the unused store can be removed");
        let Some(disk) = &self.disk else { return };
        self.home.move_store(disk.path(&format!("store-{}", self.rounds)));
        self.heads.clear();
    }

    /// Lets a server work, and injects a fault.
    fn run_until_fault(&mut self) -> Result<(), String> {
        if self.server.is_none() {
            while self.scenario.start_faults && self.random.one_in(3) {
                self.kill_during_start();
            }
        }
        let server = self.ensure_server()?;
        let work = self.random.within(self.scenario.work_ms.clone());
        let users: Vec<String> = self.context.params.users().collect();
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        for _ in 0..LOGS_READ_PER_START {
            let user = &users[self.random.within(0..=users.len() as u64 - 1) as usize];
            workload::read_log(&self.context, &mut http, user)?;
        }
        drop(http);
        thread::sleep(Duration::from_millis(work));
        let fault = (self.scenario.choose_fault)(&mut self.random);
        self.inject(fault)
    }

    /// Receives all messages from a server without faults, until nothing is pending.
    fn drain(&mut self) -> Result<(), String> {
        let server = self.ensure_server()?;
        match workload::drain(&self.context, server) {
            Ok(heads) => self.heads = heads.into_iter().collect(),
            Err(reason) => {
                self.record_failure(&reason);
                return Err(reason);
            }
        }
        Ok(())
    }

    fn record(&self, event: &Event) {
        self.context.history.record(event);
    }

    /// Checks the history of the round in a separate process.
    fn check(&mut self) -> Result<(), String> {
        self.context.history.flush();
        let history = self.context.history.path();
        let program = std::env::current_exe().expect("this program has a path");
        let output = Command::new(program).arg("check").arg(history).output().expect("the checker can be started");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let counts: Option<Counts> = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
        if let Some(counts) = &counts {
            self.stats.add_round(counts);
        }
        if output.status.success() {
            _ = std::fs::remove_file(history);
            return Ok(());
        }
        let copy: PathBuf = std::env::temp_dir().join(format!("mesa-faults-{}-{}.jsonl", self.seed, self.rounds));
        std::fs::copy(history, &copy).expect("the history can be copied");
        let violations = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{}, seed {}, round {}: the checker found\n{violations}\nthe history is in {}; the last lines of the server's log \
             are\n{}",
            self.scenario.name,
            self.seed,
            self.rounds,
            copy.display(),
            self.home.log()
        ))
    }
}

fn context(
    scenario: &Scenario,
    histories: &tempfile::TempDir,
    round: u64,
    runtime: &tokio::runtime::Runtime,
    connections: &Arc<AtomicU64>,
) -> Context {
    Context {
        params: Arc::new(scenario.params.clone()),
        current: Arc::new(CurrentServer::default()),
        history: Arc::new(Recorder::new(&histories.path().join(format!("round-{round}.jsonl")))),
        runtime: runtime.handle().clone(),
        connections: connections.clone(),
    }
}

/// Converts a duration to milliseconds, with microseconds as decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// Replaces the simulated disk on systems without FUSE.
#[cfg(not(target_os = "linux"))]
mod unsupported {
    use std::{convert::Infallible, io, path::PathBuf};

    use crate::{
        fuse_disk::{Losses, PowerCut},
        support::seeded_rng::Random,
    };

    pub struct Disk(Infallible);

    impl Disk {
        pub fn new() -> io::Result<Self> {
            Err(io::Error::other("the simulated disk exists only on Linux"))
        }

        pub fn path(&self, _: &str) -> PathBuf {
            match self.0 {}
        }

        pub fn cut_power(&self, _: PowerCut, _: &mut Random) -> Losses {
            match self.0 {}
        }
    }
}
