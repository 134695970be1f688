//! Reads every log over HTTP, and receives all messages until nothing is pending.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{Context, RunningServer, clients, devices};
use crate::{history::Event, support::http::Http};

/// Users that are drained in parallel.
const PARALLEL: usize = 4;

/// Time without a frame after which the pending messages are counted over HTTP.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Polls in a row without a frame, after which the client reconnects.
const POLLS_MAX: u32 = 50;

/// The same for a device. Fewer, because the messages may be pending for another device.
const DEVICE_POLLS_MAX: u32 = 8;

/// Longest time to drain one user. Then the checker reports the messages that are still pending.
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Entries per page of a log.
const PAGE_LIMIT: usize = 1000;

#[derive(Deserialize)]
struct Page {
    messages: Vec<StoredMessage>,
    cursor: Option<u64>,
}

#[derive(Deserialize)]
struct StoredMessage {
    s: u64,
    d: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserState {
    pending: u64,
    last_sequence: u64,
}

/// Reads and records the pending messages of a user. Returns the user's last sequence.
///
/// # Errors
/// If the connection breaks or the server answers with an error.
pub fn read_log(context: &Context, http: &mut Http, user: &str) -> Result<u64, String> {
    let mut entries = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/users/{user}/messages?after={after}&limit={PAGE_LIMIT}");
        let page: Page = get(http, &path)?.ok_or("the page does not exist")?;
        let number = |stored: &StoredMessage, key: &str| stored.d[key].as_u64().unwrap_or(u64::MAX);
        entries.extend(page.messages.iter().map(|one| (one.s, number(one, "b"), number(one, "n"))));
        match page.cursor {
            Some(cursor) if !page.messages.is_empty() => after = cursor,
            _ => break,
        }
    }
    // Read after the entries, so that the head is not below any of them.
    let head = user_state(http, user)?.last_sequence;
    context.history.record(&Event::LogRead { user: user.to_owned(), head, entries });
    Ok(head)
}

/// Reads the state of a user. It is all zeros if the server does not know the user.
fn user_state(http: &mut Http, user: &str) -> Result<UserState, String> {
    let user = get(http, &format!("/v1/users/{user}"))?;
    Ok(user.unwrap_or(UserState { pending: 0, last_sequence: 0 }))
}

fn get<T: serde::de::DeserializeOwned>(http: &mut Http, path: &str) -> Result<Option<T>, String> {
    let (status, body) = http.call("GET", path, "").map_err(|error| error.to_string())?;
    match status {
        200 => serde_json::from_slice(&body).map(Some).map_err(|error| format!("{path}: {error}")),
        404 => Ok(None),
        status => Err(format!("{path}: {status} {}", String::from_utf8_lossy(&body))),
    }
}

/// Receives all pending messages of all users. Returns the last sequence of each user.
///
/// # Errors
/// If a connection breaks or the server answers with an error.
pub fn drain(context: &Context, server: RunningServer) -> Result<Vec<(String, u64)>, String> {
    let users: Vec<String> = context.params.users().collect();
    let drain_users = |users: Vec<String>| -> Result<Vec<(String, u64)>, String> {
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        users.into_iter().map(|user| Ok((user.clone(), drain_user(context, server, &mut http, &user)?))).collect()
    };
    std::thread::scope(|scope| {
        let parts = (0..PARALLEL).map(|part| users.iter().skip(part).step_by(PARALLEL).cloned().collect::<Vec<_>>());
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| drain_users(part))).collect();
        let mut heads = Vec::new();
        for thread in threads {
            heads.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(heads)
    })
}

fn drain_user(context: &Context, server: RunningServer, http: &mut Http, user: &str) -> Result<u64, String> {
    read_log(context, http, user)?;
    let end = Instant::now() + USER_TIMEOUT;
    let UserState { mut pending, .. } = user_state(http, user)?;
    let devices = devices::of_user(&context.params, user);
    let has_client = devices.is_empty() || clients::all(&context.params).iter().any(|(name, _)| name == user);
    // The acknowledgement of a client that was connected until now may still be on its way. So `pending` may be above 0
    // although nothing is left to receive.
    while pending > 0 && Instant::now() < end {
        for device in &devices {
            let by_cursor = context.connections.load(Ordering::Relaxed).is_multiple_of(2);
            if by_cursor {
                receive(context, server, http, (user, Some(device)), end)?;
            } else {
                let head = user_state(http, user)?.last_sequence;
                context.runtime.block_on(devices::drain(context, server, user, device, head))?;
            }
        }
        if has_client {
            receive(context, server, http, (user, None), end)?;
        }
        pending = user_state(http, user)?.pending;
    }
    let UserState { pending, last_sequence } = user_state(http, user)?;
    context.history.record(&Event::Drained { user: user.to_owned(), head: last_sequence, pending });
    Ok(last_sequence)
}

/// Receives on one connection that does not resume, until nothing is pending or too many polls were without a frame.
fn receive(
    context: &Context,
    server: RunningServer,
    http: &mut Http,
    (user, device): (&str, Option<&str>),
    end: Instant,
) -> Result<(), String> {
    let polls_max = if device.is_some() { DEVICE_POLLS_MAX } else { POLLS_MAX };
    let c = context.connections.fetch_add(1, Ordering::Relaxed);
    context.runtime.block_on(async {
        let mut socket = clients::connect_as(context, c, server, user, (None, device)).await?;
        let (mut messages_left, mut polls) = (u64::MAX, 0);
        loop {
            match timeout(POLL_INTERVAL, socket.event()).await {
                Ok(event) => {
                    polls = 0;
                    clients::handle(context, c, &mut socket, event, &mut messages_left).await?;
                }
                Err(_) => {
                    polls += 1;
                    let UserState { pending, .. } = user_state(http, user)?;
                    if pending == 0 || polls == polls_max || Instant::now() > end {
                        return clients::close(context, c, socket).await;
                    }
                }
            }
        }
    })
}
