//! Starts two servers on one store at the same moment. One must serve, and the other must exit and name the owner.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    env,
    support::{
        command::mesa_command,
        http::Http,
        seeded_rng::Random,
        server::{Home, Process},
        wait::WAIT_TIMEOUT,
    },
    tracker::Tracker,
};

/// Time within which the second server must exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn two_servers_started_on_one_store_one_serves_and_other_exits() {
    let mut random = Random::from_env("two_processes");
    let (home, mut tracker) = (Home::new(), Tracker::default());
    let races = env::repetitions(20, 100);
    let (mut slowest, mut later_won) = (Duration::ZERO, 0);
    for race in 0..races {
        let mut contenders = [Contender::new(&home, 0), Contender::new(&home, 1)];
        let started = Instant::now();
        let first = random.within(0..=1) as usize;
        contenders[first].start();
        if random.one_in(2) {
            thread::sleep(Duration::from_micros(random.within(0..=20_000)));
        }
        contenders[1 - first].start();

        let (loser, code) = wait_for_loser(&mut contenders);
        slowest = slowest.max(started.elapsed());
        later_won += usize::from(loser == first);
        let (winner, log) = (&contenders[1 - loser], contenders[loser].log());
        let owner = format!("process {}", winner.pid());
        let store = home.store();
        assert_eq!(code, Some(1), "race {race}: {log}");
        assert!(log.contains("mesa: ") && log.contains(store.to_str().expect("a UTF-8 path")), "race {race}: {log}");
        assert!(log.contains(&owner), "race {race}: expected the owner, {owner}: {log}");

        let mut http = Http::connect(winner.address()).expect("the winner serves");
        for _ in 0..3 {
            assert_eq!(tracker.dispatch(&mut http, "alice").expect("a response"), 200);
        }
        tracker.check(&mut http).unwrap_or_else(|violation| panic!("race {race}: {violation}"));
    }
    env::print(&format!(
        "{races} races for one store, {later_won} won by the later start; loser exited in {slowest:?}"
    ));
}

/// Waits until one of the two has exited. Returns its index and exit code.
fn wait_for_loser(contenders: &mut [Contender; 2]) -> (usize, Option<i32>) {
    let end = Instant::now() + EXIT_TIMEOUT;
    loop {
        for (index, contender) in contenders.iter_mut().enumerate() {
            if let Some(status) = contender.process.as_mut().and_then(Process::try_wait) {
                return (index, status.code());
            }
        }
        assert!(Instant::now() < end, "expected one of two servers on one store to exit within {EXIT_TIMEOUT:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A server with a log and a ready file of its own. The store is that of `home`.
struct Contender<'a> {
    home: &'a Home,
    number: usize,
    process: Option<Process>,
    pid: u32,
}

impl<'a> Contender<'a> {
    fn new(home: &'a Home, number: usize) -> Self {
        let new = Self { home, number, process: None, pid: 0 };
        _ = fs::remove_file(home.path(&new.file_name("ready")));
        new
    }

    fn file_name(&self, name: &str) -> String {
        format!("{name}-{}", self.number)
    }

    fn start(&mut self) {
        let log = File::create(self.home.path(&self.file_name("log"))).expect("a log");
        let child: Child = mesa_command()
            .arg("serve")
            .args([Path::new("--config"), &self.home.path("config.json5")])
            .args([Path::new("--store-path"), &self.home.store()])
            .args([Path::new("--ready-file"), &self.home.path(&self.file_name("ready"))])
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
        fs::read_to_string(self.home.path(&self.file_name("log"))).unwrap_or_default()
    }

    fn address(&self) -> std::net::SocketAddr {
        let end = Instant::now() + WAIT_TIMEOUT;
        loop {
            if let Ok(text) = fs::read_to_string(self.home.path(&self.file_name("ready"))) {
                let ready: serde_json::Value = serde_json::from_str(&text).expect("a complete ready file in JSON");
                return ready["address"].as_str().and_then(|text| text.parse().ok()).expect("an address");
            }
            assert!(Instant::now() < end, "expected the winner to listen within {WAIT_TIMEOUT:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }
}
