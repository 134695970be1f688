//! One store, the servers on it one after the other, and what is done to them.
//!
//! A run consists of chapters. Each has a history of its own: some faults while everybody is at work, then a drain, in
//! which all that is pending is received, and then the checker. So logs, histories and memory stay as small in a run of
//! a thousand faults as in one of ten.
//!
//! - `scenario`: what a run is to be
//! - `server`: starting it, and each way of harming it
//! - `stats`: the figures of a run

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

pub use self::scenario::{Fault, Form, Until, any_cut};
use self::stats::Tally;
use crate::{
    checker::Figures,
    history::{Event, Recorder},
    support::{
        http::Http,
        seeded_rng::Random,
        server::{Home, Server},
    },
    workload::{self, Here, Stage, World},
};

#[cfg(target_os = "linux")]
use crate::fuse_disk::Mounted as Disk;
#[cfg(not(target_os = "linux"))]
use nowhere::Disk;

/// Chapters, of which one is played on a new store, where the disk forgets.
const NEW_STORE_ONCE_IN: u64 = 4;

/// Kills while a store is being made.
const START_FAULTS_OF_NEW: u64 = 3;

/// Users whose logs are read over HTTP after every start.
const LOOKED_AT: u64 = 4;

/// Chapters that are added while no power cut has taken anything back: on a slow machine, few writes are unsynced at a cut.
const FURTHER_CHAPTERS_MAX: u32 = 10;

/// A run.
pub struct Theatre<'a> {
    form: &'a Form,
    seed: u64,
    random: Random,
    home: Home,
    runtime: tokio::runtime::Runtime,
    /// Where histories are while they are written and checked.
    histories: tempfile::TempDir,
    world: World,
    server: Option<Server>,
    /// Behind the server, which must be gone before the disk is.
    disk: Option<Disk>,
    /// The number of the last server that was started.
    life: u64,
    /// What each backend counts on from.
    next: Vec<u64>,
    heads: BTreeMap<String, u64>,
    chapters: u64,
    connections: Arc<AtomicU64>,
    tally: Tally,
}

impl<'a> Theatre<'a> {
    /// # Errors
    /// Where there is no disk that forgets, and the form needs one.
    pub fn open(form: &'a Form, seed: u64) -> Result<Self, String> {
        let mut home = Home::with(form.settings);
        let disk = if form.forgets { Some(Disk::new().map_err(|error| error.to_string())?) } else { None };
        if let Some(disk) = &disk {
            home.move_store(disk.path("store"));
        }
        if let Some(bug) = form.planted {
            home.set_variable("MESA_FAILPOINT", bug);
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let histories = tempfile::Builder::new().prefix("mesa-history-").tempdir().expect("a temporary directory");
        let connections = Arc::new(AtomicU64::new(1));
        let world = world(form, &histories, 0, &runtime, &connections);
        Ok(Self {
            form,
            seed,
            random: Random::from_seed(seed),
            home,
            runtime,
            histories,
            world,
            server: None,
            disk,
            life: 0,
            next: vec![0; form.plan.backends as usize],
            heads: BTreeMap::new(),
            chapters: 0,
            connections,
            tally: Tally::default(),
        })
    }

    /// Plays chapters until there were enough, and tells the figures.
    ///
    /// # Errors
    /// With what went wrong, and where the history of it is.
    pub fn play(mut self, until: Until) -> Result<(), String> {
        let began = Instant::now();
        let (mut result, mut further) = (Ok(()), 0);
        while result.is_ok() {
            let faults = self.tally.faults();
            let left = match until {
                Until::Faults(amount) => amount.saturating_sub(faults),
                Until::Time(time) if began.elapsed() < time => u64::MAX,
                Until::Time(_) => 0,
            };
            if left == 0 && (self.has_tested() || further == FURTHER_CHAPTERS_MAX) {
                break;
            }
            further += u32::from(left == 0);
            result = self.chapter(faults + left.clamp(1, self.form.per_chapter));
            if self.form.progress {
                self.tally.tell_briefly(self.form.name, self.chapters, began.elapsed());
            }
        }
        self.tally.tell(self.form.name, self.seed, began.elapsed());
        if result.is_ok() && !self.has_tested() {
            return Err("no power cut has taken anything back: nothing was tested".into());
        }
        result
    }

    /// Whether some power cut, where there are any, has taken something back.
    fn has_tested(&self) -> bool {
        !self.form.forgets || self.tally.has_lost()
    }

    /// Goes on until there were `faults` in all.
    fn chapter(&mut self, faults: u64) -> Result<(), String> {
        self.chapters += 1;
        let new = self.form.forgets && self.chapters > 1 && self.random.once_in(NEW_STORE_ONCE_IN);
        if new {
            self.begin_anew();
        }
        self.world = world(self.form, &self.histories, self.chapters, &self.runtime, &self.connections);
        let (durability, heads) = (self.form.durability.to_owned(), self.heads.clone());
        self.record(&Event::Run { seed: self.seed, durability, heads });
        if self.server.is_some() {
            self.record(&Event::Starting { life: self.life });
        }
        if new || self.chapters == 1 {
            // What is not there yet is as easily harmed as what is.
            (0..START_FAULTS_OF_NEW).for_each(|_| self.kill_at_start());
        }
        let actors = workload::start(&self.world, &self.next, &mut self.random);
        let mut went = Ok(());
        while went.is_ok() && self.tally.faults() < faults {
            went = self.scene();
        }
        self.world.stage.close();
        self.next = actors.join(&self.world);
        let went = went.and_then(|()| self.finish());
        let checked = self.check();
        // Where the checker finds something it says more than the scene that failed.
        checked.and(went)
    }

    /// Gives up the store for a new one.
    fn begin_anew(&mut self) {
        if let Some(server) = self.server.take() {
            server.process.kill();
        }
        std::fs::remove_dir_all(self.home.store()).expect("nobody uses the store");
        let Some(disk) = &self.disk else { return };
        self.home.move_store(disk.path(&format!("store-{}", self.chapters)));
        self.heads.clear();
    }

    /// A server at work, until something is done to it.
    fn scene(&mut self) -> Result<(), String> {
        if self.server.is_none() {
            while self.form.start_faults && self.random.once_in(3) {
                self.kill_at_start();
            }
        }
        let here = self.enter()?;
        let work = self.random.within(self.form.work_ms.clone());
        let users: Vec<String> = self.world.plan.users().collect();
        let mut http = Http::connect(here.address).map_err(|error| error.to_string())?;
        for _ in 0..LOOKED_AT {
            let user = &users[self.random.within(0..=users.len() as u64 - 1) as usize];
            workload::look(&self.world, &mut http, user)?;
        }
        drop(http);
        thread::sleep(Duration::from_millis(work));
        let fault = (self.form.choose)(&mut self.random);
        self.harm(fault)
    }

    /// A server that is left in peace, until nothing is pending any more.
    fn finish(&mut self) -> Result<(), String> {
        let here = self.enter()?;
        match workload::drain(&self.world, here) {
            Ok(heads) => self.heads = heads.into_iter().collect(),
            Err(why) => {
                self.lament(&why);
                return Err(why);
            }
        }
        Ok(())
    }

    fn record(&self, event: &Event) {
        self.world.history.record(event);
    }

    /// Has the checker look at the chapter, in a process of its own.
    fn check(&mut self) -> Result<(), String> {
        self.world.history.flush();
        let history = self.world.history.path();
        let program = std::env::current_exe().expect("this program has a path");
        let output = Command::new(program).arg("check").arg(history).output().expect("the checker runs");
        let told = String::from_utf8_lossy(&output.stdout);
        let figures: Option<Figures> = told.lines().last().and_then(|line| serde_json::from_str(line).ok());
        if let Some(figures) = &figures {
            self.tally.add(figures);
        }
        if output.status.success() {
            _ = std::fs::remove_file(history);
            return Ok(());
        }
        let kept: PathBuf = std::env::temp_dir().join(format!("mesa-faults-{}-{}.jsonl", self.seed, self.chapters));
        std::fs::copy(history, &kept).expect("the history can be kept");
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{}, seed {}, chapter {}: the checker found\n{complaint}\nthe history is kept in {}; the server's last words \
             were\n{}",
            self.form.name,
            self.seed,
            self.chapters,
            kept.display(),
            self.home.log()
        ))
    }
}

fn world(
    form: &Form,
    histories: &tempfile::TempDir,
    chapter: u64,
    runtime: &tokio::runtime::Runtime,
    connections: &Arc<AtomicU64>,
) -> World {
    World {
        plan: Arc::new(form.plan.clone()),
        stage: Arc::new(Stage::default()),
        history: Arc::new(Recorder::new(&histories.path().join(format!("chapter-{chapter}.jsonl")))),
        runtime: runtime.handle().clone(),
        connections: connections.clone(),
    }
}

/// Milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// What actors are told of a server.
fn here(life: u64, server: &Server) -> Here {
    Here { life, address: server.address }
}

/// Where there is no FUSE.
#[cfg(not(target_os = "linux"))]
mod nowhere {
    use std::{convert::Infallible, io, path::PathBuf};

    use crate::{
        fuse_disk::{Cut, Lost},
        support::seeded_rng::Random,
    };

    pub struct Disk(Infallible);

    impl Disk {
        pub fn new() -> io::Result<Self> {
            Err(io::Error::other("it is for Linux alone"))
        }

        pub fn path(&self, _: &str) -> PathBuf {
            match self.0 {}
        }

        pub fn cut(&self, _: Cut, _: &mut Random) -> Lost {
            match self.0 {}
        }
    }
}
