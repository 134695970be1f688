//! Answers `INFO`: the fields that Redis clients need before other commands, and some of this server.

use super::RespServer;

/// Redis version in the reply, by which clients choose the protocol.
const REDIS_VERSION: &str = "7.0.0";

pub(super) fn text(server: &RespServer) -> String {
    let portals = server.hub.portals().map_or(0, |portals| portals.count());
    let lines = [
        "# Server".to_owned(),
        format!("redis_version:{REDIS_VERSION}"),
        "redis_mode:standalone".to_owned(),
        format!("mesa_version:{}", env!("CARGO_PKG_VERSION")),
        format!("process_id:{}", std::process::id()),
        format!("uptime_in_seconds:{}", server.started.elapsed().as_secs()),
        String::new(),
        "# Clients".to_owned(),
        format!("connected_clients:{}", server.metrics.redis_protocol_connections.get()),
        String::new(),
        "# Persistence".to_owned(),
        // Clients wait while a server is loading.
        "loading:0".to_owned(),
        String::new(),
        "# Replication".to_owned(),
        "role:master".to_owned(),
        String::new(),
        "# Mesa".to_owned(),
        format!("connections:{}", server.hub.connection_count()),
        format!("users_online:{}", server.hub.online_count()),
        format!("portals:{portals}"),
        format!("ready:{}", ready(server)),
        String::new(),
    ];
    lines.join("\r\n")
}

/// Returns `yes`, or the parts of the server that are not ready.
fn ready(server: &RespServer) -> String {
    match server.hub.ready() {
        Ok(()) => "yes".to_owned(),
        Err(reports) => reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}
