//! SIGTERM at any moment: the server ends in order and in time, tells its clients, and keeps what it answered.

use std::{
    fs,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backends::Backends,
    client::{Client, Event},
    ledger::Ledger,
    prepared::{Prepared, backlog, copy},
    proc,
    strace::{self, Fault},
    support::{
        http::Http,
        random::Random,
        server::{Home, Server},
    },
    tools,
};

/// Within this a server has ended.
const END_MAX: Duration = Duration::from_secs(10);

/// Messages that wait for the client that is cut off while it reads them.
const BACKLOG: u64 = 4_000;

#[test]
fn sigterm_amid_dispatches_keeps_what_was_answered_and_tells_the_clients() {
    let mut random = Random::announced("terminate_dispatches");
    let times = tools::times(10, 200);
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    for _ in 0..times {
        let home = Home::new();
        let (pause, gap) = (random.within(5..=150), random.once_in(2).then(|| random.within(0..=30)));
        let (ledger, took) = amid_dispatches(&home, pause, gap);
        answered += ledger.answered();
        slowest = slowest.max(took);
        hold(&home, &ledger);
    }
    tools::say(&format!(
        "{times} times SIGTERM amid dispatches: {answered} answered and kept; ended within {slowest:?}"
    ));
}

/// Ends a server after `pause` ms of dispatching, with a second SIGTERM `gap` ms behind the first if there is one.
fn amid_dispatches(home: &Home, pause: u64, gap: Option<u64>) -> (Ledger, Duration) {
    let server = home.start();
    let runtime = runtime();
    let client = runtime.block_on(Client::connect(server.address, "bystander")).expect("a connection");
    let users: Vec<String> = (0..4).map(|n| format!("user-{n}")).collect();
    let backends = Backends::start(server.address, &users);
    backends.wait_for(1);
    thread::sleep(Duration::from_millis(pause));
    let asked = Instant::now();
    server.terminate();
    if let Some(gap) = gap {
        thread::sleep(Duration::from_millis(gap));
        proc::signal(server.pid, Signal::TERM);
    }
    let (_, farewell) = runtime.block_on(client.until_the_end(END_MAX));
    let status = ended(server, home);
    let took = asked.elapsed();
    check_end(status, gap.is_some(), home);
    // Whoever says it twice has no time for farewells.
    let told = farewell == Event::Closed(1001) || gap.is_some() && farewell == Event::Gone;
    assert!(told, "the client was told {farewell:?}:\n{}", home.log());
    (backends.stop(), took)
}

#[test]
fn sigterm_amid_a_redelivery_loses_nothing_of_it() {
    let mut random = Random::announced("terminate_redelivery");
    let times = tools::times(10, 200);
    let image = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
    backlog(image.path(), "alice", BACKLOG);
    let mut cut = 0;
    for _ in 0..times {
        let home = Home::new();
        copy(image.path(), &home.store());
        let server = home.start();
        let runtime = runtime();
        let few = random.within(1..=BACKLOG - 1);
        let (twice, leaves) = (random.once_in(3), random.once_in(2));
        let (first, farewell) = runtime.block_on(async {
            let mut client = Client::connect(server.address, "alice").await.expect("a connection");
            let mut first = client.until_message(few).await.unwrap_or_else(|wrong| panic!("{wrong}"));
            server.terminate();
            if twice {
                proc::signal(server.pid, Signal::TERM);
            }
            if leaves {
                // What is under way to it is gone.
                return (first, None);
            }
            let (rest, farewell) = client.until_the_end(END_MAX).await;
            first.extend(rest);
            (first, Some(farewell))
        });
        check_end(ended(server, &home), twice, &home);
        let told = farewell.as_ref().is_none_or(|end| *end == Event::Closed(1001) || twice && *end == Event::Gone);
        assert!(told, "the client was told {farewell:?}");
        assert!(first.iter().copied().eq(0..first.len() as u64), "out of order before the end");
        cut += usize::from((first.len() as u64) < BACKLOG);

        let server = home.start();
        let second = runtime.block_on(async {
            let mut http = Http::connect(server.address).expect("a connection");
            let user: serde_json::Value = http.get("/v1/users/alice").expect("what is known of alice");
            if user["pending"] == 0 {
                return Vec::new();
            }
            let mut client = Client::connect(server.address, "alice").await.expect("a connection");
            client.until_message(BACKLOG - 1).await.unwrap_or_else(|wrong| panic!("{wrong}"))
        });
        // It may begin with what the first had and did not confirm, and then there is no hole.
        let from = second.first().copied().unwrap_or(BACKLOG);
        assert!(from <= first.len() as u64, "{} came first, then {from} and on", first.len());
        assert!(second.iter().copied().eq(from..BACKLOG), "out of order afterwards");
    }
    tools::say(&format!(
        "{times} times SIGTERM amid {BACKLOG} messages, {cut} of them before the last was there: no hole"
    ));
    assert!(cut > 0, "every redelivery was over before the end came");
}

#[test]
fn sigterm_during_a_start_ends_it_in_order() {
    if !tools::strace_is_here("SIGTERM during a slow start") {
        return;
    }
    let mut random = Random::announced("terminate_start");
    let times = tools::times(10, 200);
    let prepared = Prepared::new();
    let home = Home::new();
    let mut before = 0;
    for _ in 0..times {
        prepared.place(&home);
        // A disk on which every sync takes a while gives time to begin with the end.
        let slow = Fault { call: "fsync".into(), how: "delay_enter=40000", when: 1, for_ever: true };
        let process = strace::spawn(&home, "fsync", &std::collections::BTreeSet::new(), Some(&slow));
        let pid = holder(&home);
        thread::sleep(Duration::from_millis(random.within(0..=400)));
        before += usize::from(!home.path("ready").exists());
        proc::signal(pid, Signal::TERM);
        let status = strace::wait(process, END_MAX, "SIGTERM during a start");
        assert!(status.success(), "ended with {status}:\n{}", home.log());
        prepared.check_at_a_plain_start(&home).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    tools::say(&format!("{times} times SIGTERM during a start, {before} of them before the server listened"));
    assert!(before > 0, "every start was over before the end came");
}

/// The process that has the store of `home`, as soon as one has.
fn holder(home: &Home) -> i32 {
    let end = Instant::now() + Duration::from_secs(120);
    let lock = home.store().join("lock");
    // What the store was prepared by is this very process.
    let own = i32::try_from(std::process::id()).expect("process ids are small");
    loop {
        let holder = fs::read_to_string(&lock).ok().and_then(|text| text.parse().ok());
        if let Some(pid) = holder.filter(|pid| *pid != own) {
            return pid;
        }
        assert!(Instant::now() < end, "nobody takes the store");
        thread::sleep(Duration::from_millis(1));
    }
}

fn ended(server: Server, home: &Home) -> ExitStatus {
    strace::wait(server.process, END_MAX, &home.log())
}

/// In order, or, after a second SIGTERM, at once: that is 128 + 15.
fn check_end(status: ExitStatus, twice: bool, home: &Home) {
    let fine = status.success() || twice && status.code() == Some(143);
    assert!(fine, "ended with {status}:\n{}", home.log());
}

fn hold(home: &Home, ledger: &Ledger) {
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    ledger.check(&mut http).unwrap_or_else(|wrong| panic!("{wrong}:\n{}", home.log()));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
