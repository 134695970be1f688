//! A backup of a server that is at work, and the store that is made of it.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesa::{
    message::{Payload, UserId},
    store::{
        Append,
        disk::{self, DiskOptions},
        journal::Tuning,
    },
};
use serde_json::{Value, json};
use support::{
    http::Http,
    server::{Home, KEY, Server},
    socket::Socket,
};

const USERS: u64 = 12;
const BACKENDS: u64 = 3;

/// Each backend has so many answers before the backup begins.
const BEFORE: u64 = 60;

fn user(n: u64) -> String {
    format!("user-{n}")
}

fn mesa(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    command.args(words).env("MESA_API_KEY", KEY).output().expect("it runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

type Logs = BTreeMap<String, Vec<(u64, Value)>>;

fn logs(address: SocketAddr) -> Logs {
    let mut http = Http::connect(address).expect("a connection");
    let mut logs = Logs::new();
    for user in (0..USERS).map(user) {
        let (log, mut after) = (logs.entry(user.clone()).or_default(), 0);
        loop {
            let page: Value = http.get(&format!("/v1/users/{user}/messages?after={after}&limit=1000")).expect("a page");
            let messages = page["messages"].as_array().expect("messages").clone();
            let Some(last) = messages.last() else { break };
            after = last["s"].as_u64().expect("a sequence");
            log.extend(messages.iter().map(|each| (each["s"].as_u64().expect("a sequence"), each["d"].clone())));
        }
    }
    logs
}

fn stop(server: Server) {
    server.terminate();
    assert!(server.process.wait(Duration::from_secs(30)).success());
}

/// Dispatches until told to stop; counts what was answered.
fn work(address: SocketAddr, backend: u64, answered: &AtomicU64, stop: &AtomicBool) {
    let mut http = Http::connect(address).expect("a connection");
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let recipients: Vec<String> = (0..=n % 4).map(|other| user((n + backend * 5 + other * 3) % USERS)).collect();
        let data = json!({ "backend": backend, "n": n, "pad": "x".repeat(n as usize % 2_000) });
        http.dispatch(&data, &recipients).expect("it is answered");
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// What of a backend's messages are in a log.
fn of_backend(log: &[(u64, Value)], backend: u64) -> Vec<u64> {
    let ours = log.iter().filter(|(_, data)| data["backend"] == json!(backend));
    ours.map(|(_, data)| data["n"].as_u64().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_has_all_that_was_answered_before_it_began() {
    let home = Home::new();
    let server = home.start();
    let address = server.address;
    let stopping = Arc::new(AtomicBool::new(false));
    let answered: Vec<Arc<AtomicU64>> = (0..BACKENDS).map(|_| Arc::default()).collect();
    let backends: Vec<_> = (0..BACKENDS)
        .map(|backend| {
            let (answered, stopping) = (answered[backend as usize].clone(), stopping.clone());
            thread::spawn(move || work(address, backend, &answered, &stopping))
        })
        .collect();
    // One user is here and receives, so that entries go while the backup is made.
    let receiving = tokio::spawn(async move {
        let Ok(mut socket) = Socket::connect(address, &user(0)).await else { return };
        while socket.next().await.is_ok() {}
    });
    let end = Instant::now() + Duration::from_secs(60);
    while answered.iter().any(|answered| answered.load(Ordering::SeqCst) < BEFORE) {
        assert!(Instant::now() < end, "the backends are not answered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before: Vec<u64> = answered.iter().map(|answered| answered.load(Ordering::SeqCst)).collect();
    let (file, url) = (home.path("backup.mesa"), format!("http://{address}"));
    let made = tokio::task::block_in_place(|| mesa(&["backup", text(&file), "--url", &url]));
    assert!(made.status.success(), "{}", said(&made));
    stopping.store(true, Ordering::SeqCst);
    backends.into_iter().for_each(|backend| backend.join().expect("a backend that was answered"));
    receiving.abort();
    let truth = tokio::task::block_in_place(|| logs(address));
    stop(server);

    let restored = Home::new();
    let made = mesa(&["restore", text(&file), "--store-path", text(&restored.store())]);
    assert!(made.status.success(), "{}", said(&made));
    let inspected = mesa(&["inspect", text(&restored.store())]);
    assert!(inspected.status.success(), "{}", said(&inspected));
    let server = restored.start();
    let found = logs(server.address);
    for (user, log) in &found {
        if *user == self::user(0) {
            // What he received before his turn came is not there; the rest goes on without a hole.
            assert!(log.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{user}: a hole");
            continue;
        }
        assert_eq!(log[..], truth[user][..log.len()], "{user}: what is there is what was there, from the beginning");
        for backend in 0..BACKENDS {
            let expected = of_backend(&truth[user], backend);
            let expected: Vec<u64> = expected.into_iter().filter(|n| *n < before[backend as usize]).collect();
            let found = of_backend(log, backend);
            assert_eq!(found[..expected.len()], expected, "{user}: all that backend {backend} had been answered");
        }
    }
    let mut http = Http::connect(server.address).expect("a connection");
    let everybody: Vec<String> = (0..USERS).map(user).collect();
    http.dispatch(&json!("after"), &everybody).expect("it is answered");
    for (user, log) in logs(server.address) {
        let head = truth[&user].last().map_or(0, |(seq, _)| *seq);
        let (seq, data) = log.last().expect("what was just sent");
        assert!(*seq > head && *data == json!("after"), "{user}: {seq} after {head}");
    }
    stop(server);
}

#[test]
fn a_backup_that_is_not_whole_and_a_place_that_is_taken_are_refused() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for n in 0..50 {
        http.dispatch(&json!({ "n": n, "pad": "x".repeat(3_000) }), &[user(n % 3), user(3)]).expect("it is answered");
    }
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    let made = mesa(&["backup", text(&file), "--url", &url]);
    assert!(made.status.success(), "{}", said(&made));
    assert!(said(&made).contains("4 users, 100 messages"), "{}", said(&made));
    let again = mesa(&["backup", text(&file), "--url", &url]);
    assert!(!again.status.success() && said(&again).contains("already"), "{}", said(&again));
    assert!(!home.path("backup.mesa.partial").exists());
    let foreign = Command::new(env!("CARGO_BIN_EXE_mesa"))
        .args(["backup", text(&home.path("other")), "--url", &url, "--key", "not-the-key-at-all"])
        .output()
        .expect("it runs");
    assert!(!foreign.status.success() && said(&foreign).contains("unauthorized"), "{}", said(&foreign));
    stop(server);

    let bytes = fs::read(&file).expect("the backup");
    let damaged = home.path("damaged.mesa");
    let place = home.path("restored");
    for (what, bytes) in [
        ("cut off", bytes[..bytes.len() - 1].to_vec()),
        ("cut off at a block", bytes[..16].to_vec()),
        ("flipped", bytes.iter().enumerate().map(|(at, byte)| if at == 9_000 { byte ^ 4 } else { *byte }).collect()),
        ("something else", b"no backup".to_vec()),
    ] {
        fs::write(&damaged, bytes).expect("it is written");
        let refused = mesa(&["restore", text(&damaged), "--store-path", text(&place)]);
        assert!(!refused.status.success(), "{what}: {}", said(&refused));
        assert!(!place.exists(), "{what}: nothing is made of it");
    }
    let taken = mesa(&["restore", text(&file), "--store-path", text(&home.store())]);
    assert!(!taken.status.success() && said(&taken).contains("is not empty"), "{}", said(&taken));
    let restored = mesa(&["restore", text(&file), "--store-path", text(&place)]);
    assert!(restored.status.success() && said(&restored).contains("4 users, 100 messages"), "{}", said(&restored));
}

#[test]
fn restore_killed_halfway_is_refused_and_a_second_run_makes_it_anew() {
    let home = Home::with("limits: { requestBytes: 4194304 },");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let everybody: Vec<String> = (0..USERS).map(user).collect();
    for n in 0..60 {
        http.dispatch(&json!({ "n": n, "pad": "x".repeat(50_000) }), &everybody).expect("it is answered");
    }
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    let made = mesa(&["backup", text(&file), "--url", &url]);
    assert!(made.status.success(), "{}", said(&made));
    stop(server);

    let restored = Home::new();
    let store = restored.store();
    let restore = ["restore", text(&file), "--store-path", text(&store)];
    let partial = restored.path("store.partial");
    let mut process = Command::new(env!("CARGO_BIN_EXE_mesa")).args(restore).spawn().expect("it runs");
    let end = Instant::now() + Duration::from_secs(60);
    // Once it has its tables it is at work on the messages, of which there are 36 MB.
    while !partial.join("log").exists() {
        assert!(Instant::now() < end && process.try_wait().expect("its state").is_none(), "the restore does not begin");
        thread::sleep(Duration::from_millis(1));
    }
    process.kill().expect("it is killed");
    process.wait().expect("it ends");
    assert!(partial.join("unfinished").exists(), "the restore was at its end before it was killed");

    let mut halfway = Home::new();
    halfway.move_store(partial.clone());
    let refused = halfway.ready(halfway.spawn(&[])).map(|_| ()).expect_err("a half-made store is served");
    assert!(refused.contains("Run `mesa restore` again"), "{refused}");
    let inspected = mesa(&["inspect", text(&partial)]);
    assert!(
        !inspected.status.success() && said(&inspected).contains("Run `mesa restore` again"),
        "{}",
        said(&inspected)
    );

    let again = mesa(&restore);
    assert!(again.status.success() && said(&again).contains("12 users, 720 messages"), "{}", said(&again));
    assert!(!partial.exists() && !restored.store().join("unfinished").exists());
    let server = restored.start();
    assert!(logs(server.address).values().all(|log| log.len() == 60));
    stop(server);
}

#[test]
fn backup_of_a_damaged_store_ends_as_a_broken_transfer() {
    // Two thirds of a mebibyte: the damage lies behind the pieces that were sent.
    const DISPATCHES: usize = 200;
    let home = Home::new();
    let tuning = Tuning { settle_after: Duration::ZERO, ..Tuning::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let needle = |n: usize| format!("message {n:03} ");
    let inbox = || {
        let files =
            fs::read_dir(home.store().join("inbox")).expect("a directory").map(|file| file.expect("a file").path());
        files.map(|file| (fs::read(&file).expect("its bytes"), file)).collect::<Vec<_>>()
    };
    let found = |n: usize| {
        inbox().into_iter().find_map(|(bytes, file)| {
            let at = bytes.windows(needle(n).len()).position(|bytes| bytes == needle(n).as_bytes())?;
            Some((bytes, file, at))
        })
    };
    runtime.block_on(async {
        let store = disk::open(DiskOptions { tuning, ..DiskOptions::new(home.store()) }).expect("a store");
        for n in 0..DISPATCHES {
            let data = json!(needle(n).repeat(300)).to_string();
            let payload = Payload::encode(0, Some(&data), None).expect("a payload");
            let users = vec![UserId::new(&user(n as u64 % 3)).expect("an id")];
            store.append_all(vec![Append::new(payload, users)]).await.expect("it is taken");
        }
        let end = Instant::now() + Duration::from_secs(60);
        while found(DISPATCHES - 2).is_none() {
            assert!(Instant::now() < end, "nothing is flushed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        store.close().await.expect("it closes");
    });
    let (mut bytes, file, at) = found(DISPATCHES - 2).expect("it was there");
    bytes[at] ^= 4;
    fs::write(&file, &bytes).expect("it is damaged");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let whole = http.call("GET", "/v1/backup", "");
    assert!(
        whole.is_err(),
        "the response ends as if it were whole: {:?}",
        whole.map(|(status, body)| (status, body.len()))
    );
    let out = home.path("damaged.mesa");
    let made = mesa(&["backup", text(&out), "--url", &format!("http://{}", server.address)]);
    assert!(!made.status.success() && !out.exists(), "{}", said(&made));
    // The next one may begin as soon as the server has noticed that the client of the last one is gone.
    let end = Instant::now() + Duration::from_secs(120);
    while let Ok((status, body)) = Http::connect(server.address).expect("a connection").call("GET", "/v1/backup", "") {
        assert_eq!(status, 409, "the response ends as if it were whole: {} bytes", body.len());
        assert!(Instant::now() < end, "a backup is not given up: {}", String::from_utf8_lossy(&body));
        std::thread::sleep(Duration::from_millis(10));
    }
    home.log_once(|log| log.contains("a backup ended early"));
    stop(server);
}
