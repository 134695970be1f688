//! In the end: every log is read over HTTP and then received, until nothing is pending.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{Here, World, clients, devices};
use crate::{history::Event, support::http::Http};

/// Users drained at the same time.
const AT_ONCE: usize = 4;

/// How long a client waits for a message before it asks whether there is one.
const QUIET: Duration = Duration::from_millis(10);

/// Times in a row that nothing comes on a connection before another is tried.
const QUIETS: u32 = 50;

/// The same where a device may be what it is pending for.
const QUIETS_OF_DEVICE: u32 = 8;

/// How long a user may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Entries asked for at once.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct Page {
    messages: Vec<Stored>,
    cursor: Option<u64>,
}

#[derive(Deserialize)]
struct Stored {
    s: u64,
    d: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    pending: u64,
    last_sequence: u64,
}

/// Reads what is pending for a user, and writes it down; returns his last sequence.
///
/// # Errors
/// When the server goes away.
pub fn look(world: &World, http: &mut Http, user: &str) -> Result<u64, String> {
    let mut entries = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/users/{user}/messages?after={after}&limit={PAGE}");
        let page: Page = get(http, &path)?.ok_or("no such page")?;
        let number = |stored: &Stored, key: &str| stored.d[key].as_u64().unwrap_or(u64::MAX);
        entries.extend(page.messages.iter().map(|one| (one.s, number(one, "b"), number(one, "n"))));
        match page.cursor {
            Some(cursor) if !page.messages.is_empty() => after = cursor,
            _ => break,
        }
    }
    // Behind the entries: the head may only be further on.
    let head = state(http, user)?.last_sequence;
    world.history.record(&Event::Log { user: user.to_owned(), head, entries });
    Ok(head)
}

/// Of a user whom the server does not know, everything is zero.
fn state(http: &mut Http, user: &str) -> Result<User, String> {
    let user = get(http, &format!("/v1/users/{user}"))?;
    Ok(user.unwrap_or(User { pending: 0, last_sequence: 0 }))
}

fn get<T: serde::de::DeserializeOwned>(http: &mut Http, path: &str) -> Result<Option<T>, String> {
    let (status, body) = http.call("GET", path, "").map_err(|error| error.to_string())?;
    match status {
        200 => serde_json::from_slice(&body).map(Some).map_err(|error| format!("{path}: {error}")),
        404 => Ok(None),
        status => Err(format!("{path}: {status} {}", String::from_utf8_lossy(&body))),
    }
}

/// Receives everything that is pending for all users; returns the last sequence of each.
///
/// # Errors
/// When the server goes away.
pub fn drain(world: &World, here: Here) -> Result<Vec<(String, u64)>, String> {
    let users: Vec<String> = world.plan.users().collect();
    let drain_all = |users: Vec<String>| -> Result<Vec<(String, u64)>, String> {
        let mut http = Http::connect(here.address).map_err(|error| error.to_string())?;
        users.into_iter().map(|user| Ok((user.clone(), drain_one(world, here, &mut http, &user)?))).collect()
    };
    std::thread::scope(|scope| {
        let parts = (0..AT_ONCE).map(|part| users.iter().skip(part).step_by(AT_ONCE).cloned().collect::<Vec<_>>());
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| drain_all(part))).collect();
        let mut heads = Vec::new();
        for thread in threads {
            heads.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(heads)
    })
}

fn drain_one(world: &World, here: Here, http: &mut Http, user: &str) -> Result<u64, String> {
    look(world, http, user)?;
    let end = Instant::now() + PATIENCE;
    let User { mut pending, .. } = state(http, user)?;
    let devices = devices::of(&world.plan, user);
    let stock = devices.is_empty() || clients::cast(&world.plan).iter().any(|(name, _)| name == user);
    // A client that was there when the play ended may have receipts under way, so this is asked of a client too.
    while pending > 0 && Instant::now() < end {
        for device in &devices {
            let by_cursor = world.connections.load(Ordering::Relaxed).is_multiple_of(2);
            if by_cursor {
                receive(world, here, http, (user, Some(device)), end)?;
            } else {
                let head = state(http, user)?.last_sequence;
                world.runtime.block_on(devices::drain(world, here, user, device, head))?;
            }
        }
        if stock {
            receive(world, here, http, (user, None), end)?;
        }
        pending = state(http, user)?.pending;
    }
    let User { pending, last_sequence } = state(http, user)?;
    world.history.record(&Event::Drained { user: user.to_owned(), head: last_sequence, pending });
    Ok(last_sequence)
}

/// Receives on one connection until nothing is pending.
fn receive(
    world: &World,
    here: Here,
    http: &mut Http,
    (user, device): (&str, Option<&str>),
    end: Instant,
) -> Result<(), String> {
    let quiets_max = if device.is_some() { QUIETS_OF_DEVICE } else { QUIETS };
    let c = world.connections.fetch_add(1, Ordering::Relaxed);
    world.runtime.block_on(async {
        let mut socket = clients::open_as(world, c, here, user, (None, device)).await?;
        let (mut left, mut quiets) = (u64::MAX, 0);
        loop {
            match timeout(QUIET, socket.event()).await {
                Ok(event) => {
                    quiets = 0;
                    clients::take(world, c, &mut socket, event, &mut left).await?;
                }
                Err(_) => {
                    quiets += 1;
                    let User { pending, .. } = state(http, user)?;
                    if pending == 0 || quiets == quiets_max || Instant::now() > end {
                        return clients::close(world, c, socket).await;
                    }
                }
            }
        }
    })
}
