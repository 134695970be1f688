//! A large list that the original has left for one user costs the server a piece of it, not several times all of it.

use serde_json::Value;

use super::{Socket, Stage, next, until};
use crate::original::redis;

/// Of the list.
const MESSAGES: u64 = 2_000;

/// Of one of its messages.
const BYTES: usize = 20_000;

/// What the peak of the server's memory may rise by: twice the list. One copy of its text, and one of its messages, would be
/// as much alone.
const RISE_MAX: u64 = 2 * MESSAGES * BYTES as u64;

/// The peak of a process's memory, in bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Connects a user with a large list. On a busy machine one script over 60 MB can take Redis longer than a server waits for a
/// reply; the server then asks the client to try again, and the next try continues where the last one ended.
async fn patient_client(stage: &Stage, user: &str) -> Socket {
    let mut client = None;
    until("a client to be connected", async || {
        match Socket::connect(stage.servers[0].address, user).await {
            Ok(connected) => client = Some(connected),
            Err(error) => assert!(error.contains("the store cannot be reached for now"), "{error}"),
        }
        client.is_some()
    })
    .await;
    client.expect("the wait ends with a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_40_mb_for_one_user_is_taken_in_pieces() {
    let stage = Stage::new(1);
    let script = "local list, text = {}, string.rep('x', ARGV[2])
        for n = 1, ARGV[1] do list[n] = '{\"op\":0,\"d\":{\"n\":' .. n .. ',\"x\":\"' .. text .. '\"}}' end
        return redis.call('HSET', KEYS[1], 'alice', '[' .. table.concat(list, ',') .. ']')";
    let (count, bytes) = (MESSAGES.to_string(), BYTES.to_string());
    assert_eq!(redis(&stage, &["EVAL", script, "1", "undelivered_messages", &count, &bytes]), "1");
    let before = peak(stage.servers[0].process.id());
    let _alice = patient_client(&stage, "alice").await;
    until("all to be in the log", async || {
        let (_, alice) = stage.ask(0, "GET", "/v1/users/alice", &Value::Null).await;
        alice["pending"] == MESSAGES
    })
    .await;
    let rise = peak(stage.servers[0].process.id()) - before;
    assert!(rise < RISE_MAX, "{} MB for a list of {} MB", rise >> 20, (MESSAGES * BYTES as u64) >> 20);
    assert_eq!(redis(&stage, &["EXISTS", "undelivered_messages"]), "0");
}

/// Bytes of a message that no client can be sent.
const LARGE: u64 = 60_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_of_60_mb_is_put_aside_without_being_held() {
    let stage = Stage::new(1);
    let script = "local text = '{\"op\":0,\"d\":\"' .. string.rep('x', ARGV[1]) .. '\"}'
        return redis.call('HSET', KEYS[1], 'alice', '[' .. text .. ',{\"op\":0,\"d\":7}]')";
    assert_eq!(redis(&stage, &["EVAL", script, "1", "undelivered_messages", &LARGE.to_string()]), "1");
    let before = peak(stage.servers[0].process.id());
    let mut alice = patient_client(&stage, "alice").await;
    assert_eq!(next(&mut alice).await, 7);
    let rise = peak(stage.servers[0].process.id()) - before;
    assert!(rise < LARGE / 2, "{} MB for a message of {} MB", rise >> 20, LARGE >> 20);
    let kept: u64 = redis(&stage, &["STRLEN", "mesa:{undelivered_messages}:aside:alice"]).parse().expect("a length");
    assert!(kept > LARGE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_messages_that_cannot_be_sent_is_logged_once_in_an_interval() {
    let stage = Stage::new(1);
    let list = format!("[{}]", vec![r#"{"t":5}"#; 200].join(","));
    assert_eq!(redis(&stage, &["HSET", "undelivered_messages", "alice", &list]), "1");
    let _alice = stage.client(0, "alice").await;
    until("all to be set aside", async || redis(&stage, &["KEYS", "*:aside:alice"]).contains("aside:alice")).await;
    let log = stage.homes[0].log_once(|log| log.contains("it is set aside"));
    let lines = log.lines().filter(|line| line.contains("it is set aside")).count();
    assert!((1..=2).contains(&lines), "{lines} lines");
}
