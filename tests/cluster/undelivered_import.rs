//! Tests the server's memory while it imports a large list of undelivered messages of the original (`@cryb/mesa`).

use serde_json::Value;

use super::{ServerGroup, Socket, next_data, wait_until};

/// Number of messages in the list.
const MESSAGES: u64 = 2_000;

/// Bytes of one message in the list.
const MESSAGE_BYTES: usize = 20_000;

/// Maximum rise of the server's peak memory: twice the list. One copy of its text and one of its messages would take as
/// much.
const RISE_LIMIT: u64 = 2 * MESSAGES * MESSAGE_BYTES as u64;

/// Returns the peak memory (`VmHWM`) of a process in bytes.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Connects a user with a large list, with retries.
///
/// On a busy machine one script over 60 MB can take Redis longer than a server waits for a reply. The server then asks
/// the client to retry. The next attempt continues where the last one ended.
async fn connect_with_retries(group: &ServerGroup, user: &str) -> Socket {
    let mut client = None;
    wait_until("the client is connected", async || {
        match Socket::connect(group.servers[0].address, user).await {
            Ok(connected) => client = Some(connected),
            Err(error) => assert!(error.contains("the store cannot be reached for now"), "{error}"),
        }
        client.is_some()
    })
    .await;
    client.expect("a connected client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_of_a_40_mb_list_raises_memory_by_less_than_twice_its_size() {
    let group = ServerGroup::start(1);
    let script = "local list, text = {}, string.rep('x', ARGV[2])
        for n = 1, ARGV[1] do list[n] = '{\"op\":0,\"d\":{\"n\":' .. n .. ',\"x\":\"' .. text .. '\"}}' end
        return redis.call('HSET', KEYS[1], 'alice', '[' .. table.concat(list, ',') .. ']')";
    let (count, bytes) = (MESSAGES.to_string(), MESSAGE_BYTES.to_string());
    assert_eq!(group.redis().cli(&["EVAL", script, "1", "undelivered_messages", &count, &bytes]), "1");
    let before = peak_memory(group.servers[0].process.id());
    let _alice = connect_with_retries(&group, "alice").await;
    wait_until("the log holds every message of the list", async || {
        let (_, alice) = group.call(0, "GET", "/v1/users/alice", &Value::Null).await;
        alice["pending"] == MESSAGES
    })
    .await;
    let rise = peak_memory(group.servers[0].process.id()) - before;
    let list = MESSAGES * MESSAGE_BYTES as u64;
    assert!(rise < RISE_LIMIT, "peak memory rises by {} MB for a list of {} MB", rise >> 20, list >> 20);
    assert_eq!(group.redis().cli(&["EXISTS", "undelivered_messages"]), "0");
}

/// Bytes of a message that is too large for any client.
const LARGE_BYTES: u64 = 60_000_000;

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_of_60_mb_is_set_aside_in_redis_without_a_copy_in_memory() {
    let group = ServerGroup::start(1);
    let script = "local text = '{\"op\":0,\"d\":\"' .. string.rep('x', ARGV[1]) .. '\"}'
        return redis.call('HSET', KEYS[1], 'alice', '[' .. text .. ',{\"op\":0,\"d\":7}]')";
    assert_eq!(group.redis().cli(&["EVAL", script, "1", "undelivered_messages", &LARGE_BYTES.to_string()]), "1");
    let before = peak_memory(group.servers[0].process.id());
    let mut alice = connect_with_retries(&group, "alice").await;
    assert_eq!(next_data(&mut alice).await, 7);
    let rise = peak_memory(group.servers[0].process.id()) - before;
    let (rise_mb, message_mb) = (rise >> 20, LARGE_BYTES >> 20);
    assert!(rise < LARGE_BYTES / 2, "peak memory rises by {rise_mb} MB for a message of {message_mb} MB");
    let length = group.redis().cli(&["STRLEN", "mesa:{undelivered_messages}:unsendable:alice"]);
    assert!(length.parse::<u64>().expect("a length") > LARGE_BYTES, "the message is set aside whole: {length} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_200_invalid_messages_is_logged_at_most_twice() {
    let group = ServerGroup::start(1);
    let list = format!("[{}]", vec![r#"{"t":5}"#; 200].join(","));
    assert_eq!(group.redis().cli(&["HSET", "undelivered_messages", "alice", &list]), "1");
    let _alice = group.client(0, "alice").await;
    wait_until("the messages are set aside", async || {
        group.redis().cli(&["KEYS", "*:unsendable:alice"]).contains("unsendable:alice")
    })
    .await;
    let log = group.homes[0].wait_for_log(|log| log.contains("it is set aside"));
    let lines = log.lines().filter(|line| line.contains("it is set aside")).count();
    assert!((1..=2).contains(&lines), "one or two log lines are expected, not {lines}");
}
