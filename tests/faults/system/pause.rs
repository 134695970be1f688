//! SIGSTOP, and SIGCONT some seconds later, as when a virtual machine is moved: whoever waited is answered, clients are
//! still there, nothing is lost.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backends::Backends,
    client::{Client, Event},
    env, proc,
    support::{http::Http, seeded_rng::Random, server::Home},
};

#[test]
fn a_paused_server_goes_on_where_it_was() {
    let mut random = Random::announced("pause");
    let home = Home::new();
    let config = fs::read_to_string(home.path("config.json5")).expect("a configuration");
    let config = config.replacen('{', "{ heartbeat: { enabled: true, interval: 1000, maxAttempts: 3 },", 1);
    fs::write(home.path("config.json5"), config).expect("written");
    let (pauses, pause) = if env::complete() { (6, 20_000) } else { (2, 3_000) };

    let server = home.start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let client = runtime.block_on(Client::connect(server.address, "user-0")).expect("a connection");
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let reading = runtime.spawn(read(client, last.clone()));
    let users: Vec<String> = (0..3).map(|n| format!("user-{n}")).collect();
    let backends = Backends::start(server.address, &users);
    for _ in 0..pauses {
        let before = backends.answered();
        backends.wait_for(before + 50);
        thread::sleep(Duration::from_millis(random.within(0..=100)));
        proc::signal(server.pid, Signal::STOP);
        let stopped = Instant::now();
        while !proc::is_stopped(server.pid) {
            assert!(stopped.elapsed() < Duration::from_secs(5), "it does not stop");
            thread::sleep(Duration::from_millis(1));
        }
        let at_stop = backends.answered();
        thread::sleep(Duration::from_millis(pause));
        // Each backend may have had one answer in its hands.
        assert!(backends.answered() <= at_stop + users.len(), "a stopped process answers");
        proc::signal(server.pid, Signal::CONT);
        backends.wait_for(at_stop + users.len() + 50);
    }
    let ledger = backends.stop();
    last.store(ledger.sent_to("user-0") - 1, Ordering::Relaxed);
    let received = runtime.block_on(reading).expect("no panic").unwrap_or_else(|wrong| panic!("the client: {wrong}"));
    ledger.check_received("user-0", &received).unwrap_or_else(|wrong| panic!("{wrong}"));
    server.process.kill();

    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for user in &users[1..] {
        ledger.check_user(&mut http, user).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    env::say(&format!(
        "{pauses} pauses of {pause} ms amid {} dispatches: {} answered and kept",
        ledger.sent(),
        ledger.answered()
    ));
}

/// Reads over one connection, which must not end, until the message has come that `last` names by then.
async fn read(mut client: Client, last: Arc<AtomicU64>) -> Result<Vec<u64>, String> {
    let (mut received, mut heard) = (Vec::new(), Instant::now());
    loop {
        match client.next(Duration::from_millis(50)).await {
            Event::Message(n) => received.push(n),
            Event::Asked => {}
            Event::Silence if received.last() == Some(&last.load(Ordering::Relaxed)) => return Ok(received),
            Event::Silence if heard.elapsed() < Duration::from_secs(60) => continue,
            end => return Err(format!("{end:?} after {} messages", received.len())),
        }
        heard = Instant::now();
    }
}
