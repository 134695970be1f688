//! A Redis Cluster: its nodes, and routing of commands to them.
//!
//! The client library's own retries are off. After a socket error a command may have been done, and an append that is
//! done twice delivers a message twice. A command is resent only after an error that proves that no node has done it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};

use super::outage::Outage;

/// Time limit of a reply. Then the client reconnects.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Time limit for connecting.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for which one command is resent while slots move. Then it fails. For slots without a node all requests share
/// one deadline (`outage`).
const SLOT_MOVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Delay between two attempts of a command.
const RESEND_DELAY: Duration = Duration::from_millis(25);

/// Limit of discovered nodes, in addition to the configured ones.
const NODES_MAX: usize = 64;

/// Host and port.
type Address = (String, u16);

/// The configured nodes, and those discovered since.
pub(super) struct Nodes {
    named: Vec<ConnectionInfo>,
    reply_timeout: Duration,
    discovered: Mutex<Vec<Address>>,
    /// Number of attempts to subscribe. Each starts at the next node.
    turn: std::sync::atomic::AtomicUsize,
    outage: Outage,
}

impl Nodes {
    pub(super) fn new(urls: &[String], reply_timeout: Duration) -> RedisResult<Self> {
        let named = urls.iter().map(|url| url.as_str().into_connection_info()).collect::<RedisResult<Vec<_>>>()?;
        // Reports invalid addresses now, and not at the first attempt to connect.
        ClusterClient::builder(named.clone()).build()?;
        let turn = std::sync::atomic::AtomicUsize::new(0);
        Ok(Self { named, reply_timeout, discovered: Mutex::default(), turn, outage: Outage::default() })
    }

    /// Returns all nodes, configured ones first. Discovered nodes use the credentials of the first configured one.
    fn all(&self) -> Vec<ConnectionInfo> {
        let mut all = self.named.clone();
        let Some(first) = self.named.first() else { return all };
        for (host, port) in self.discovered.lock().iter() {
            if all.iter().all(|node| address(node).as_ref() != Some(&(host.clone(), *port))) {
                let (host, port) = (host.clone(), *port);
                let addr = match first.addr().clone() {
                    ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                        ConnectionAddr::TcpTls { host, port, insecure, tls_params }
                    }
                    _ => ConnectionAddr::Tcp(host, port),
                };
                all.push(first.clone().set_addr(addr));
            }
        }
        all
    }

    /// Connects to the Redis Cluster, and discovers its nodes.
    pub(super) async fn connect(&self) -> RedisResult<ClusterConnection> {
        let client = ClusterClient::builder(self.all())
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(self.reply_timeout)
            .retries(0)
            .build()?;
        let mut connection = client.get_async_connection().await?;
        let slots = send(&mut connection, self, redis::cmd("CLUSTER").arg("SLOTS")).await?;
        *self.discovered.lock() = addresses(&slots);
        Ok(connection)
    }

    /// Opens a connection for subscriptions to any node: each node forwards published messages to all others.
    pub(super) async fn pubsub(&self) -> RedisResult<PubSub> {
        let all = self.all();
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut failed = None;
        for at in 0..all.len() {
            let listening = async { Client::open(all[(turn + at) % all.len()].clone())?.get_async_pubsub().await };
            match tokio::time::timeout(CONNECT_TIMEOUT / 2, listening).await {
                Ok(Ok(listener)) => return Ok(listener),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| RedisError::from((ErrorKind::Io, "no node of the Cluster can be reached"))))
    }
}

fn address(node: &ConnectionInfo) -> Option<Address> {
    match node.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Reads the nodes from a reply to CLUSTER SLOTS.
fn addresses(slots: &Value) -> Vec<Address> {
    let mut found = Vec::new();
    let Value::Array(slots) = slots else { return found };
    for slot in slots {
        let Value::Array(parts) = slot else { continue };
        for node in parts.iter().skip(2) {
            let Value::Array(node) = node else { continue };
            if let (Some(Value::BulkString(host)), Some(Value::Int(port))) = (node.first(), node.get(1))
                && let (Ok(host), Ok(port)) = (String::from_utf8(host.clone()), u16::try_from(*port))
            {
                let address = (host, port);
                if found.len() < NODES_MAX && !found.contains(&address) {
                    found.push(address);
                }
            }
        }
    }
    found
}

/// Sends a command to every node, and returns the replies of reachable nodes.
pub(super) async fn query_each_node(connection: &mut ClusterConnection, nodes: &Nodes, command: &Cmd) -> Vec<Value> {
    let mut answers = Vec::new();
    for node in nodes.all() {
        let Some((host, port)) = address(&node) else { continue };
        let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
        answers.extend(connection.route_command(command.clone(), route).await.and_then(Value::extract_error).ok());
    }
    answers
}

/// Sends a command to the node of its keys. Resends it for 3 s while slots move or have no node.
pub(super) async fn send(connection: &mut ClusterConnection, nodes: &Nodes, command: &Cmd) -> RedisResult<Value> {
    let end = Instant::now() + SLOT_MOVE_TIMEOUT;
    let mut asking = None;
    loop {
        let sent = match asking.take() {
            None => connection.req_packed_command(command).await,
            Some(node) => send_asking(connection, command, node).await,
        };
        let error = match sent.and_then(Value::extract_error) {
            Ok(value) => {
                nodes.outage.answered(command);
                return Ok(value);
            }
            Err(error) => error,
        };
        // After each of these errors the node has done nothing.
        let end = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain) => end,
            ErrorKind::ClusterConnectionNotFound
            | ErrorKind::Server(
                ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::BusyLoading,
            ) => end.min(nodes.outage.refused(command)),
            _ => return Err(error),
        };
        if Instant::now() >= end {
            return Err(error);
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) {
            asking = error.redirect_node().and_then(|(node, _)| {
                let (host, port) = node.rsplit_once(':')?;
                Some((host.to_owned(), port.parse().ok()?))
            });
            if asking.is_some() {
                continue;
            }
        }
        tokio::time::sleep(RESEND_DELAY).await;
    }
}

/// Sends a command, behind ASKING, to the node to which a slot is moving.
async fn send_asking(
    connection: &mut ClusterConnection,
    command: &Cmd,
    (host, port): (String, u16),
) -> RedisResult<Value> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ASKING").add_command(command.clone());
    let mut answers =
        connection.route_pipeline(pipeline, 0, 2, SingleNodeRoutingInfo::ByAddress { host, port }).await?;
    answers.pop().ok_or_else(|| RedisError::from((ErrorKind::Io, "a node gave no answer")))
}
