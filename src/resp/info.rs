//! `INFO`: what Redis clients look for before they say anything else, and what is worth knowing of this server.

use super::Wire;

/// The Redis whose words are spoken, for clients that ask.
const REDIS_VERSION: &str = "7.0.0";

pub(super) fn text(wire: &Wire) -> String {
    let portals = wire.hub.portals().map_or(0, |portals| portals.count());
    let lines = [
        "# Server".to_owned(),
        format!("redis_version:{REDIS_VERSION}"),
        "redis_mode:standalone".to_owned(),
        format!("mesa_version:{}", env!("CARGO_PKG_VERSION")),
        format!("process_id:{}", std::process::id()),
        format!("uptime_in_seconds:{}", wire.since.elapsed().as_secs()),
        String::new(),
        "# Clients".to_owned(),
        format!("connected_clients:{}", wire.metrics.redis_protocol_connections.get()),
        String::new(),
        "# Persistence".to_owned(),
        // A client that is told otherwise waits.
        "loading:0".to_owned(),
        String::new(),
        "# Replication".to_owned(),
        "role:master".to_owned(),
        String::new(),
        "# Mesa".to_owned(),
        format!("connections:{}", wire.hub.connections()),
        format!("users_online:{}", wire.hub.online_count()),
        format!("portals:{portals}"),
        format!("ready:{}", ready(wire)),
        String::new(),
    ];
    lines.join("\r\n")
}

/// `yes`, or the parts of the server that are not ready.
fn ready(wire: &Wire) -> String {
    match wire.hub.ready() {
        Ok(()) => "yes".to_owned(),
        Err(reports) => reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}
