//! Two servers started on one directory at the same moment: one serves, the other says who has it and ends.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    ledger::Ledger,
    support::{
        http::Http,
        random::Random,
        server::{Home, Process},
    },
    tools,
};

/// How long the one that comes too late may take to say so.
const REFUSAL_MAX: Duration = Duration::from_secs(5);

#[test]
fn of_two_servers_started_on_one_directory_one_serves_and_the_other_says_so() {
    let mut random = Random::announced("two_processes");
    let (home, mut ledger) = (Home::new(), Ledger::default());
    let races = tools::times(20, 100);
    let (mut slowest, mut second_won) = (Duration::ZERO, 0);
    for race in 0..races {
        let mut contenders = [Contender::new(&home, 0), Contender::new(&home, 1)];
        let started = Instant::now();
        let first = random.within(0..=1) as usize;
        contenders[first].start();
        if random.once_in(2) {
            thread::sleep(Duration::from_micros(random.within(0..=20_000)));
        }
        contenders[1 - first].start();

        let (loser, code) = ends_first(&mut contenders);
        slowest = slowest.max(started.elapsed());
        second_won += usize::from(loser == first);
        let (winner, told) = (&contenders[1 - loser], contenders[loser].log());
        let holder = format!("process {}", winner.pid());
        let store = home.store();
        assert_eq!(code, Some(1), "race {race}: {told}");
        assert!(told.contains("mesa: ") && told.contains(store.to_str().expect("a plain path")), "race {race}: {told}");
        assert!(told.contains(&holder), "race {race}: the holder is {holder}: {told}");

        let mut http = Http::connect(winner.address()).expect("the winner serves");
        for _ in 0..3 {
            assert_eq!(ledger.dispatch(&mut http, "alice").expect("an answer"), 200);
        }
        ledger.check(&mut http).unwrap_or_else(|wrong| panic!("race {race}: {wrong}"));
    }
    tools::say(&format!("{races} races for one directory, {second_won} won by the later; refused within {slowest:?}"));
}

/// Waits until one of two has ended; which, and its exit code.
fn ends_first(contenders: &mut [Contender; 2]) -> (usize, Option<i32>) {
    let end = Instant::now() + REFUSAL_MAX;
    loop {
        for (which, contender) in contenders.iter_mut().enumerate() {
            if let Some(status) = contender.process.as_mut().and_then(Process::ended) {
                return (which, status.code());
            }
        }
        assert!(Instant::now() < end, "two servers on one directory, and none gives way within {REFUSAL_MAX:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A server that shares its store with another, and nothing else.
struct Contender<'a> {
    home: &'a Home,
    number: usize,
    process: Option<Process>,
    pid: u32,
}

impl<'a> Contender<'a> {
    fn new(home: &'a Home, number: usize) -> Self {
        let new = Self { home, number, process: None, pid: 0 };
        _ = fs::remove_file(home.path(&new.name("ready")));
        new
    }

    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.number)
    }

    fn start(&mut self) {
        let log = File::create(self.home.path(&self.name("log"))).expect("a log");
        let child: Child = Command::new(env!("CARGO_BIN_EXE_mesa"))
            .arg("serve")
            .args([Path::new("--config"), &self.home.path("config.json5")])
            .args([Path::new("--store-path"), &self.home.store()])
            .args([Path::new("--ready-file"), &self.home.path(&self.name("ready"))])
            .env_remove("MESA_FAULTS")
            .env_remove("MESA_SEED")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.pid = child.id();
        self.process = Some(Process::new(child));
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path(&self.name("log"))).unwrap_or_default()
    }

    fn address(&self) -> std::net::SocketAddr {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            if let Ok(text) = fs::read_to_string(self.home.path(&self.name("ready"))) {
                let ready: serde_json::Value = serde_json::from_str(&text).expect("JSON, and whole");
                return ready["address"].as_str().and_then(|text| text.parse().ok()).expect("an address");
            }
            assert!(Instant::now() < end, "the winner does not listen:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }
}
