//! SIGSTOP, and SIGCONT some seconds later, as when a virtual machine is moved: whoever waited is answered, clients are
//! still there, nothing is lost.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backends::Backends,
    client::Client,
    proc,
    support::{http::Http, random::Random, server::Home},
    tools,
};

#[test]
fn a_paused_server_goes_on_where_it_was() {
    let mut random = Random::announced("pause");
    let home = Home::new();
    let config = fs::read_to_string(home.path("config.json5")).expect("a configuration");
    let config = config.replacen('{', "{ heartbeat: { enabled: true, interval: 1000, maxAttempts: 3 },", 1);
    fs::write(home.path("config.json5"), config).expect("written");
    let (pauses, pause) = if tools::complete() { (6, 20_000) } else { (2, 3_000) };

    let server = home.start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut client = runtime.block_on(Client::connect(server.address, "user-0")).expect("a connection");
    // Whoever comes back after the pause as if nothing had been, here as well as on the server, has three intervals for it.
    let (done, finished) = tokio::sync::oneshot::channel::<u64>();
    let reading = runtime.spawn(async move {
        let mut received = Vec::new();
        let mut finished = Box::pin(finished);
        let mut last = None;
        loop {
            tokio::select! {
                event = client.next(Duration::from_secs(60)), if last.is_none_or(|last| received.last() != Some(&last)) => match event {
                    crate::client::Event::Message(n) => received.push(n),
                    crate::client::Event::Asked => {}
                    end => return Err(format!("{end:?} after {} messages", received.len())),
                },
                told = &mut finished, if last.is_none() => last = told.ok(),
                else => return Ok(received),
            }
        }
    });
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
    done.send(ledger.sent_to("user-0") - 1).expect("the client is still there");
    let received = runtime.block_on(reading).expect("no panic").unwrap_or_else(|wrong| panic!("the client: {wrong}"));
    ledger.check_received("user-0", &received).unwrap_or_else(|wrong| panic!("{wrong}"));
    server.process.kill();

    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for user in &users[1..] {
        ledger.check_user(&mut http, user).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    tools::say(&format!(
        "{pauses} pauses of {pause} ms amid {} dispatches: {} answered and kept",
        ledger.sent(),
        ledger.answered()
    ));
}
