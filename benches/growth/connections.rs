//! Measures connections: memory of each, CPU of heartbeats, and broadcasts while some clients reconnect.

use std::time::{Duration, Instant};

use mesa::message::{Message, Recipients};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::{child::Server, crowd::Crowd};

/// Files that a process has open besides its connections.
const OTHER_FILES: u64 = 500;

/// Time after the last connection, in which buffers are freed.
const PAUSE_TIME: Duration = Duration::from_secs(2);

/// Time for which idle connections are measured: two heartbeats of each.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Broadcasts, one in each interval.
const BROADCASTS: usize = 30;
const BROADCAST_INTERVAL: Duration = Duration::from_secs(1);

/// Figures of one number of connections.
pub struct Size {
    pub clients: usize,
    /// CPU of the server for each connecting client, in microseconds.
    pub connect_us: f64,
    /// Resident bytes of the server for each connection, when idle and after the broadcasts.
    pub bytes: f64,
    pub bytes_after: f64,
    /// Percent of a core for the heartbeats.
    pub idle_percent: f64,
    /// Percent of a core for the broadcasts, heartbeats and reconnecting clients.
    pub busy_percent: f64,
    /// Milliseconds from the dispatch of a broadcast until a client has it.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Returns the number of connections that the limit of open files allows, which it raises.
pub fn files_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Without an effect the current limit applies.
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files.saturating_sub(OTHER_FILES) as usize)
}

/// Measures each number of connections on a server of its own.
pub fn measure(sizes: &[usize]) -> Vec<Size> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    sizes.iter().map(|clients| runtime.block_on(measure_one(*clients))).collect()
}

async fn measure_one(clients: usize) -> Size {
    let server = Server::start_insecure("heartbeat: { enabled: true }");
    let dispatcher = server.dispatcher();
    let new = server.usage().await;
    let crowd = Crowd::connect(&server.address, (0..clients).map(|number| format!("user-{number}")).collect());
    crowd.wait_until_authenticated().await;
    let connected = server.usage().await;
    tokio::time::sleep(PAUSE_TIME).await;
    let idle = server.usage().await;
    tokio::time::sleep(IDLE_TIME).await;
    let measured = server.usage().await;
    crowd.reconnect_within(BROADCASTS);
    let start = Instant::now();
    let mut interval = tokio::time::interval(BROADCAST_INTERVAL);
    for n in 0..BROADCASTS {
        interval.tick().await;
        let message = Message::new("CROWD", &json!({ "n": n, "at": crowd.now_us() })).expect("a message");
        dispatcher.dispatch(&message, &Recipients::Everyone, &[]).await.expect("an accepted broadcast");
    }
    interval.tick().await;
    // Clients that reconnect miss broadcasts: those are not stored.
    let missed = clients / crate::crowd::RECONNECTING * 2;
    crowd.wait_until_received((clients * BROADCASTS).saturating_sub(missed) as u64).await;
    let seconds = start.elapsed().as_secs_f64();
    let after = server.usage().await;
    let latencies = crowd.latencies();
    let ms = |microseconds: u64| microseconds as f64 / 1000.0;
    let size = Size {
        clients,
        connect_us: (connected.cpu_seconds - new.cpu_seconds) * 1e6 / clients as f64,
        bytes: (measured.resident_bytes - new.resident_bytes) / clients as f64,
        bytes_after: (after.resident_bytes - new.resident_bytes) / clients as f64,
        idle_percent: (measured.cpu_seconds - idle.cpu_seconds) / IDLE_TIME.as_secs_f64() * 100.0,
        busy_percent: (after.cpu_seconds - measured.cpu_seconds) / seconds * 100.0,
        p50: ms(latencies.value_at_quantile(0.5)),
        p99: ms(latencies.value_at_quantile(0.99)),
        max: ms(latencies.max()),
    };
    println!(
        "{clients} connections: {} of {} broadcasts received, {} clients reconnected",
        crowd.received(),
        clients * BROADCASTS,
        crowd.reconnected()
    );
    size
}
