//! A disk that fills up. Before it is full dispatches are refused, and taken again when there is room, without a restart.

use std::time::Duration;

use serde_json::Value;

use crate::{
    client::Client,
    env,
    on_small_disk::{clear, connect, home, not_ready, pending, refusal},
    small_disk::{MIB, bytes_in, until},
    support::{http::Http, server::Server},
    tracker::Ledger,
};

/// The disk, what the server is to leave free of it, and what somebody else has put there.
const DISK_BYTES: u64 = 320 * MIB;
const FREE_BYTES: u64 = 128 * MIB;
const BALLAST_BYTES: u64 = 64 * MIB;

/// Bytes of a message. A hundred milliseconds of them are far less than stay free.
const MESSAGE_BYTES: usize = 30_000;

/// Users who are dispatched to in turn: none of them reaches a quota of his own.
const USERS: usize = 5;

/// Until there is room again: what is in the journal is kept for ten seconds.
const ROOM_PATIENCE: Duration = Duration::from_secs(40);

fn users(round: usize) -> Vec<String> {
    (0..USERS).map(|n| format!("round-{round}-user-{n}")).collect()
}

/// Dispatches until it is refused, which has to be for want of room; what was answered.
fn fill(http: &mut Http, users: &[String]) -> Ledger {
    let mut ledger = Ledger::default();
    for user in users.iter().cycle().take(DISK_BYTES as usize / MESSAGE_BYTES * 2) {
        match ledger.dispatch_padded(http, user, MESSAGE_BYTES).expect("an answer") {
            200 => {}
            507 => return ledger,
            status => panic!("a dispatch was answered with {status}"),
        }
    }
    panic!("more was taken than the disk has room for: {} messages", ledger.answered());
}

/// What a full server has to be like: refusing for a reason, and serving whoever comes for what there is.
fn is_full_and_delivers(server: &Server, http: &mut Http, ledger: &Ledger, reader: &str) {
    let (status, answer) = refusal(http);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((status, &answer["error"]["code"]), (507, &Value::from("full")), "{answer}");
    let why = answer["error"]["message"].as_str().expect("a sentence").to_owned();
    assert!(why.contains("store.minFree"), "{why}");
    let ready = not_ready(http).expect("it has no room");
    assert!(ready.contains("store.minFree"), "{ready}");

    ledger.check(http).expect("all that was answered");
    let log = crate::tracker::read_log(http, reader);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = Client::connect(server.address, reader).await.expect("connected");
        let numbers = client.until_message(log.last().expect("messages").1).await.expect("all messages");
        assert_eq!(numbers, log.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        // The receipt is asked for behind the messages.
        client.next(Duration::from_secs(10)).await;
        until("the receipt to be taken", ROOM_PATIENCE, || pending(http, reader) == 0);
    });
}

#[test]
fn before_the_disk_is_full_dispatches_are_refused_and_taken_again_when_there_is_room() {
    let Some((home, disk)) = home(DISK_BYTES, &format!("store: {{ minFree: {FREE_BYTES} }}")) else { return };
    assert_eq!(disk.put_ballast(BALLAST_BYTES), BALLAST_BYTES);
    let server = home.start();
    let mut http = connect(&server);
    let rounds = env::times(2, 12);
    let (mut told, mut all) = (Vec::new(), 0);
    for round in 0..rounds {
        let users = users(round);
        let ledger = fill(&mut http, &users);
        assert!(ledger.answered() > 100, "only {} were taken in round {round}", ledger.answered());
        is_full_and_delivers(&server, &mut http, &ledger, &users[0]);
        told.push(format!("{}, {}", ledger.answered(), bytes_in(&home.store()) / MIB));
        all += ledger.answered();
        users.iter().for_each(|user| clear(&mut http, user));
        until("room in the store", ROOM_PATIENCE, || not_ready(&mut http).is_none());
    }
    let (users, more) = (users(rounds), users(rounds + 1));
    let ledger = fill(&mut http, &users);
    disk.remove_ballast();
    until("room on the disk", ROOM_PATIENCE, || not_ready(&mut http).is_none());
    let after = fill(&mut http, &more);
    assert!(after.answered() > 100, "only {} were taken", after.answered());
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    for ledger in [&ledger, &after] {
        ledger.check(&mut http).expect("all that was answered");
        all += ledger.answered();
    }
    server.process.kill();
    env::say(&format!(
        "a full disk: {all} dispatches answered and kept, in {rounds} rounds (dispatches, MiB of store): {}",
        told.join("; ")
    ));
}
