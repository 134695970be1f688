//! A Redis Cluster: where its nodes are, and how a command finds the one that has its keys.
//!
//! The client library does not say a command a second time here: after an error of the socket nobody knows whether it was
//! done, and an append that is done twice is a message that comes twice. Said again is only what a node has refused for
//! reasons of its own, where nothing was done.

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

use super::{line::CONNECT_PATIENCE, outage::Outage};

/// How long one command is sent again while slots move. For slots without a node all wait together (`outage`).
const MOVING_PATIENCE: Duration = Duration::from_secs(3);

/// Between two attempts.
const ORDER_PAUSE: Duration = Duration::from_millis(25);

/// Nodes that are remembered beside those in the configuration.
const NODES_MAX: usize = 64;

/// Host and port.
type Address = (String, u16);

/// The nodes that the configuration names, and those that were heard of since.
pub(super) struct Nodes {
    named: Vec<ConnectionInfo>,
    reply_timeout: Duration,
    heard: Mutex<Vec<Address>>,
    /// Counts attempts to listen, so that each goes to the next.
    turn: std::sync::atomic::AtomicUsize,
    outage: Outage,
}

impl Nodes {
    pub(super) fn new(urls: &[String], reply_timeout: Duration) -> RedisResult<Self> {
        let named = urls.iter().map(|url| url.as_str().into_connection_info()).collect::<RedisResult<Vec<_>>>()?;
        // Or a mistake in the addresses would be told with the first attempt only.
        ClusterClient::builder(named.clone()).build()?;
        let turn = std::sync::atomic::AtomicUsize::new(0);
        Ok(Self { named, reply_timeout, heard: Mutex::default(), turn, outage: Outage::default() })
    }

    /// All of them, those that are named first. Whoever was heard of is spoken to as the first, with its password.
    fn all(&self) -> Vec<ConnectionInfo> {
        let mut all = self.named.clone();
        let Some(first) = self.named.first() else { return all };
        for (host, port) in self.heard.lock().iter() {
            if all.iter().all(|one| address(one).as_ref() != Some(&(host.clone(), *port))) {
                let (host, port) = (host.clone(), *port);
                let there = match first.addr().clone() {
                    ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                        ConnectionAddr::TcpTls { host, port, insecure, tls_params }
                    }
                    _ => ConnectionAddr::Tcp(host, port),
                };
                all.push(first.clone().set_addr(there));
            }
        }
        all
    }

    pub(super) async fn connect(&self) -> RedisResult<ClusterConnection> {
        let client = ClusterClient::builder(self.all())
            .connection_timeout(CONNECT_PATIENCE)
            .response_timeout(self.reply_timeout)
            .retries(0)
            .build()?;
        let mut line = client.get_async_connection().await?;
        let slots = send(&mut line, self, redis::cmd("CLUSTER").arg("SLOTS")).await?;
        *self.heard.lock() = addresses(&slots);
        Ok(line)
    }

    /// Listens at any of the nodes: what is published at one is heard at all.
    pub(super) async fn listener(&self) -> RedisResult<PubSub> {
        let all = self.all();
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut failed = None;
        for at in 0..all.len() {
            let listening = async { Client::open(all[(turn + at) % all.len()].clone())?.get_async_pubsub().await };
            match tokio::time::timeout(CONNECT_PATIENCE / 2, listening).await {
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

/// Who is named in an answer to CLUSTER SLOTS.
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

/// Asks every node that can be reached, for what each knows of itself alone.
pub(super) async fn ask_each(line: &mut ClusterConnection, nodes: &Nodes, command: &Cmd) -> Vec<Value> {
    let mut answers = Vec::new();
    for node in nodes.all() {
        let Some((host, port)) = address(&node) else { continue };
        let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
        answers.extend(line.route_command(command.clone(), route).await.and_then(Value::extract_error).ok());
    }
    answers
}

/// Sends a command to whoever has its keys, also while that changes.
pub(super) async fn send(line: &mut ClusterConnection, nodes: &Nodes, command: &Cmd) -> RedisResult<Value> {
    let end = Instant::now() + MOVING_PATIENCE;
    let mut asked = None;
    loop {
        let sent = match asked.take() {
            None => line.req_packed_command(command).await,
            Some(node) => ask(line, command, node).await,
        };
        let error = match sent.and_then(Value::extract_error) {
            Ok(value) => {
                nodes.outage.answered(command);
                return Ok(value);
            }
            Err(error) => error,
        };
        // None of these has done anything.
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
            asked = error.redirect_node().and_then(|(node, _)| {
                let (host, port) = node.rsplit_once(':')?;
                Some((host.to_owned(), port.parse().ok()?))
            });
            if asked.is_some() {
                continue;
            }
        }
        tokio::time::sleep(ORDER_PAUSE).await;
    }
}

/// Asks the node to which a slot is just moving.
async fn ask(line: &mut ClusterConnection, command: &Cmd, (host, port): (String, u16)) -> RedisResult<Value> {
    let mut both = redis::pipe();
    both.cmd("ASKING").add_command(command.clone());
    let mut answers = line.route_pipeline(both, 0, 2, SingleNodeRoutingInfo::ByAddress { host, port }).await?;
    answers.pop().ok_or_else(|| RedisError::from((ErrorKind::Io, "a node gave no answer")))
}
