//! Tests backups of a running server, and the stores that `mesa restore` creates from them.
//!
//! - `scheduled`: `mesa backup --every`

mod scheduled;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesa::{
    embedded::{Tuning, tables::DiskOptions},
    message::{Payload, UserId},
    store::Append,
};
use serde_json::{Value, json};
use support::{
    command::{mesa_command, output_text, run_mesa, utf8},
    current_thread_runtime,
    http::Http,
    server::Home,
    socket::Socket,
};

/// Longest time from SIGTERM to the exit.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

const USERS: u64 = 12;
const BACKENDS: u64 = 3;

/// Answered dispatches of each backend before the backup begins.
const ANSWERED_BEFORE_BACKUP: u64 = 60;

fn user(n: u64) -> String {
    format!("user-{n}")
}

/// Pending entries of each user: sequence and data.
type Logs = BTreeMap<String, Vec<(u64, Value)>>;

fn read_logs(address: SocketAddr) -> Logs {
    let mut http = Http::connect(address).expect("a connection");
    (0..USERS).map(user).map(|user| (user.clone(), http.pending_entries(&user))).collect()
}

/// Dispatches until `stop` is set, and counts answered dispatches.
fn dispatch_until_stopped(address: SocketAddr, backend: u64, answered: &AtomicU64, stop: &AtomicBool) {
    let mut http = Http::connect(address).expect("a connection");
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let recipients: Vec<String> = (0..=n % 4).map(|nth| user((n + backend * 5 + nth * 3) % USERS)).collect();
        let data = json!({ "backend": backend, "n": n, "pad": "x".repeat(n as usize % 2_000) });
        http.dispatch(&data, &recipients).expect("a response");
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// Lists the numbers of a backend's messages in a log.
fn numbers_of_backend(log: &[(u64, Value)], backend: u64) -> Vec<u64> {
    let entries = log.iter().filter(|(_, data)| data["backend"] == json!(backend));
    entries.map(|(_, data)| data["n"].as_u64().expect("a number")).collect()
}

// covers: G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_under_load_has_all_dispatches_answered_before_it_began() {
    let home = Home::new();
    let server = home.start();
    let address = server.address;
    let stopping = Arc::new(AtomicBool::new(false));
    let answered: Vec<Arc<AtomicU64>> = (0..BACKENDS).map(|_| Arc::default()).collect();
    let backends: Vec<_> = (0..BACKENDS)
        .map(|backend| {
            let (answered, stopping) = (answered[backend as usize].clone(), stopping.clone());
            thread::spawn(move || dispatch_until_stopped(address, backend, &answered, &stopping))
        })
        .collect();
    // One user is online and acknowledges, so that entries are removed during the backup.
    let receiving = tokio::spawn(async move {
        let Ok(mut socket) = Socket::connect(address, &user(0)).await else { return };
        while socket.next().await.is_ok() {}
    });
    let end = Instant::now() + Duration::from_secs(60);
    while answered.iter().any(|answered| answered.load(Ordering::SeqCst) < ANSWERED_BEFORE_BACKUP) {
        assert!(
            Instant::now() < end,
            "expected {ANSWERED_BEFORE_BACKUP} answered dispatches of each backend within 60 s"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before: Vec<u64> = answered.iter().map(|answered| answered.load(Ordering::SeqCst)).collect();
    let (file, url) = (home.path("backup.mesa"), format!("http://{address}"));
    let output = tokio::task::block_in_place(|| run_mesa(&["backup", utf8(&file), "--url", &url]));
    assert!(output.status.success(), "{}", output_text(&output));
    stopping.store(true, Ordering::SeqCst);
    backends.into_iter().for_each(|backend| backend.join().expect("each dispatch of the backend is answered"));
    receiving.abort();
    let original = tokio::task::block_in_place(|| read_logs(address));
    server.stop(STOP_TIMEOUT);

    let restored = Home::new();
    let output = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&restored.store())]);
    assert!(output.status.success(), "{}", output_text(&output));
    let inspected = run_mesa(&["inspect", utf8(&restored.store())]);
    assert!(inspected.status.success(), "{}", output_text(&inspected));
    let server = restored.start();
    let found = read_logs(server.address);
    for (user, log) in &found {
        if *user == self::user(0) {
            // Entries that this user acknowledged before the backup read the log are missing. The rest is contiguous.
            assert!(log.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{user}: expected no gap between entries");
            continue;
        }
        assert_eq!(log[..], original[user][..log.len()], "{user}: expected the beginning of the original log");
        for backend in 0..BACKENDS {
            let expected = numbers_of_backend(&original[user], backend);
            let expected: Vec<u64> = expected.into_iter().filter(|n| *n < before[backend as usize]).collect();
            let found = numbers_of_backend(log, backend);
            assert_eq!(
                found[..expected.len()],
                expected,
                "{user}: expected each dispatch of backend {backend} answered before the backup"
            );
        }
    }
    let mut http = Http::connect(server.address).expect("a connection");
    let all_users: Vec<String> = (0..USERS).map(user).collect();
    http.dispatch(&json!("after"), &all_users).expect("a response");
    for (user, log) in read_logs(server.address) {
        let head = original[&user].last().map_or(0, |(seq, _)| *seq);
        let (seq, data) = log.last().expect("the entry of the last dispatch");
        assert!(
            *seq > head && *data == json!("after"),
            "{user}: expected the last dispatch above sequence {head}, found {data} at {seq}"
        );
    }
    server.stop(STOP_TIMEOUT);
}

// covers: G6
#[test]
fn restore_of_damaged_backup_or_to_existing_directory_fails() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for n in 0..50 {
        http.dispatch(&json!({ "n": n, "pad": "x".repeat(3_000) }), &[user(n % 3), user(3)]).expect("a response");
    }
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    let output = run_mesa(&["backup", utf8(&file), "--url", &url]);
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("4 users, 100 messages"), "{}", output_text(&output));
    let again = run_mesa(&["backup", utf8(&file), "--url", &url]);
    assert!(!again.status.success() && output_text(&again).contains("already"), "{}", output_text(&again));
    assert!(!home.path("backup.mesa.partial").exists());
    let unauthorized = run_mesa(&["backup", utf8(&home.path("other")), "--url", &url, "--key", "not-the-key-at-all"]);
    assert!(
        !unauthorized.status.success() && output_text(&unauthorized).contains("not one of this server's `api.keys`"),
        "{}",
        output_text(&unauthorized)
    );
    server.stop(STOP_TIMEOUT);

    let bytes = fs::read(&file).expect("the backup");
    let damaged = home.path("damaged.mesa");
    let target = home.path("restored");
    for (damage, bytes) in [
        ("truncated", bytes[..bytes.len() - 1].to_vec()),
        ("truncated at a block", bytes[..16].to_vec()),
        (
            "flipped bit",
            bytes.iter().enumerate().map(|(offset, byte)| if offset == 9_000 { byte ^ 4 } else { *byte }).collect(),
        ),
        ("not a backup", b"no backup".to_vec()),
    ] {
        fs::write(&damaged, bytes).expect("the file is written");
        let output = run_mesa(&["restore", utf8(&damaged), "--store-path", utf8(&target)]);
        assert!(!output.status.success(), "{damage}: expected an error: {}", output_text(&output));
        assert!(!target.exists(), "{damage}: expected no store");
    }
    let not_empty = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&home.store())]);
    assert!(
        !not_empty.status.success() && output_text(&not_empty).contains("is not empty"),
        "{}",
        output_text(&not_empty)
    );
    let restored = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&target)]);
    assert!(
        restored.status.success() && output_text(&restored).contains("4 users, 100 messages"),
        "{}",
        output_text(&restored)
    );
}

// covers: G6
#[test]
fn restore_when_killed_leaves_store_that_does_not_open_and_second_run_completes() {
    let home = Home::with_settings("limits: { requestBytes: 4194304 },");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let all_users: Vec<String> = (0..USERS).map(user).collect();
    for n in 0..60 {
        http.dispatch(&json!({ "n": n, "pad": "x".repeat(50_000) }), &all_users).expect("a response");
    }
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    let output = run_mesa(&["backup", utf8(&file), "--url", &url]);
    assert!(output.status.success(), "{}", output_text(&output));
    server.stop(STOP_TIMEOUT);

    let restored = Home::new();
    let store = restored.store();
    let restore = ["restore", utf8(&file), "--store-path", utf8(&store)];
    let partial = restored.path("store.partial");
    let mut process = mesa_command().args(restore).spawn().expect("the command runs");
    let end = Instant::now() + Duration::from_secs(60);
    // Once the tables exist, `mesa restore` writes the messages, 36 MB in all.
    while !partial.join("log").exists() {
        assert!(
            Instant::now() < end && process.try_wait().expect("its state").is_none(),
            "expected `mesa restore` to create its tables within 60 s"
        );
        thread::sleep(Duration::from_millis(1));
    }
    process.kill().expect("the process is killed");
    process.wait().expect("the process ends");
    assert!(partial.join("unfinished").exists(), "expected to kill `mesa restore` before it completes");

    let mut unfinished = Home::new();
    unfinished.move_store(partial.clone());
    let error = unfinished
        .ready(unfinished.spawn(&[]))
        .map(|_| ())
        .expect_err("a server that does not start on an unfinished store");
    assert!(error.contains("Run `mesa restore` again"), "{error}");
    let inspected = run_mesa(&["inspect", utf8(&partial)]);
    assert!(
        !inspected.status.success() && output_text(&inspected).contains("Run `mesa restore` again"),
        "{}",
        output_text(&inspected)
    );

    let again = run_mesa(&restore);
    assert!(
        again.status.success() && output_text(&again).contains("12 users, 720 messages"),
        "{}",
        output_text(&again)
    );
    assert!(!partial.exists() && !restored.store().join("unfinished").exists());
    let server = restored.start();
    assert!(read_logs(server.address).values().all(|log| log.len() == 60));
    server.stop(STOP_TIMEOUT);
}

// covers: G6
#[test]
fn backup_of_damaged_store_ends_as_broken_transfer() {
    // Two thirds of a MiB: the damage is behind the parts that the server has sent when it reads it.
    const DISPATCHES: usize = 200;
    let home = Home::new();
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let runtime = current_thread_runtime();
    let message = |n: usize| format!("message {n:03} ");
    let value_log = || {
        let files =
            fs::read_dir(home.store().join("value-log")).expect("a directory").map(|file| file.expect("a file").path());
        files.map(|file| (fs::read(&file).expect("its bytes"), file)).collect::<Vec<_>>()
    };
    let find = |n: usize| {
        value_log().into_iter().find_map(|(bytes, file)| {
            let offset = bytes.windows(message(n).len()).position(|bytes| bytes == message(n).as_bytes())?;
            Some((bytes, file, offset))
        })
    };
    runtime.block_on(async {
        let store =
            mesa::embedded::tables::open(DiskOptions { tuning, ..DiskOptions::new(home.store()) }).expect("a store");
        for n in 0..DISPATCHES {
            let data = json!(message(n).repeat(300)).to_string();
            let payload = Payload::encode(0, Some(&data), None).expect("a payload");
            let users = vec![UserId::new(&user(n as u64 % 3)).expect("an id")];
            store.append_all(vec![Append::new(payload, users)]).await.expect("the messages are accepted");
        }
        let end = Instant::now() + Duration::from_secs(60);
        while find(DISPATCHES - 2).is_none() {
            assert!(Instant::now() < end, "expected the entries in the value log within 60 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        store.close().await.expect("the store closes");
    });
    let (mut bytes, file, offset) = find(DISPATCHES - 2).expect("the flushed message");
    bytes[offset] ^= 4;
    fs::write(&file, &bytes).expect("the damaged file is written");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let response = http.call("GET", "/v1/backup", "");
    assert!(
        response.is_err(),
        "expected a broken transfer, found a complete response: {:?}",
        response.map(|(status, body)| (status, body.len()))
    );
    let out = home.path("damaged.mesa");
    let output = run_mesa(&["backup", utf8(&out), "--url", &format!("http://{}", server.address)]);
    assert!(!output.status.success() && !out.exists(), "{}", output_text(&output));
    // A failed backup does not block the next one, once the server has noticed that the last client disconnected.
    let end = Instant::now() + Duration::from_secs(120);
    while let Ok((status, body)) = Http::connect(server.address).expect("a connection").call("GET", "/v1/backup", "") {
        assert_eq!(status, 409, "expected a broken transfer, not a complete response of {} bytes", body.len());
        assert!(Instant::now() < end, "expected the last backup to end: {}", String::from_utf8_lossy(&body));
        std::thread::sleep(Duration::from_millis(10));
    }
    home.wait_for_log(|log| log.contains("the backup is incomplete"));
    server.stop(STOP_TIMEOUT);
}
