//! Runs clients like the published ones, which answer every heartbeat (op 1) in order.

use std::{net::SocketAddr, sync::atomic::Ordering};

use super::{Context, Params, RunningServer};
use crate::{
    history::Event,
    support::{
        seeded_rng::Random,
        socket::{self, Socket},
    },
};

/// Most open sockets that one client no longer reads. For another one the oldest is dropped.
const UNREAD_SOCKETS_MAX: usize = 2;

/// Behaviour of a client on each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Stays connected while the server lives, and reconnects at once.
    Stay,
    /// Reads a few messages, abandons the connection without a close, and reconnects at once.
    Abandon,
    /// Reads a few messages, closes the connection, and reconnects at once.
    Close,
}

/// Returns all clients as (user, behaviour). Some users have two clients, others none.
pub fn all(params: &Params) -> Vec<(String, Behaviour)> {
    let behaviours = |at: usize| match at % 10 {
        0 => vec![Behaviour::Stay],
        2 | 3 => vec![Behaviour::Abandon],
        4 => vec![Behaviour::Close],
        6 => vec![Behaviour::Stay, Behaviour::Stay],
        7 => vec![Behaviour::Stay, Behaviour::Abandon],
        8 => vec![Behaviour::Close, Behaviour::Abandon],
        // Users 1 and 5 have only devices. User 9 stays offline until the drain.
        _ => vec![],
    };
    let users = params.users().enumerate();
    users.flat_map(|(at, user)| behaviours(at).into_iter().map(move |behaviour| (user.clone(), behaviour))).collect()
}

/// End of a session.
enum SessionEnd {
    /// The client ended it.
    Closed,
    /// The connection broke.
    Broken,
}

/// Connects again and again until the workload ends.
pub async fn run(context: &Context, user: &str, behaviour: Behaviour, mut random: Random) {
    let mut unread: Vec<Socket> = Vec::new();
    let mut failed = None;
    while let Some(server) = context.current.wait(failed).await {
        let messages_left = if behaviour == Behaviour::Stay { u64::MAX } else { random.within(0..=60) };
        let c = context.connections.fetch_add(1, Ordering::Relaxed);
        let mut session = Session { context, c, behaviour, messages_left };
        failed = match session.run(server, user, &mut random, &mut unread).await {
            SessionEnd::Closed => None,
            SessionEnd::Broken => Some(server.number),
        };
    }
}

/// One session of a client.
struct Session<'a> {
    context: &'a Context,
    c: u64,
    behaviour: Behaviour,
    /// Messages until the client ends the connection.
    messages_left: u64,
}

impl Session<'_> {
    async fn run(
        &mut self,
        server: RunningServer,
        user: &str,
        random: &mut Random,
        unread: &mut Vec<Socket>,
    ) -> SessionEnd {
        let mut socket = match connect(self.context, self.c, server.number, server.address, user).await {
            Ok(socket) => socket,
            Err(error) => return self.broken(error),
        };
        loop {
            if self.messages_left == 0 {
                return self.end(socket, random, unread).await;
            }
            let event = tokio::select! {
                event = socket.event() => event,
                () = self.context.current.finished() => return self.close(socket).await,
            };
            let heartbeat = matches!(event, Ok(socket::Event::AckRequest));
            if let Err(error) = handle(self.context, self.c, &mut socket, event, &mut self.messages_left).await {
                return self.broken(error);
            }
            // Directly after an acknowledgement: if it covered too much, the rest is lost now.
            if heartbeat && self.behaviour != Behaviour::Stay && random.one_in(3) {
                self.messages_left = 0;
            }
        }
    }

    async fn end(&self, socket: Socket, random: &mut Random, unread: &mut Vec<Socket>) -> SessionEnd {
        if self.behaviour == Behaviour::Close {
            return self.close(socket).await;
        }
        abandon(self.context, self.c, socket, random, unread);
        SessionEnd::Closed
    }

    async fn close(&self, socket: Socket) -> SessionEnd {
        match close(self.context, self.c, socket).await {
            Ok(()) => SessionEnd::Closed,
            Err(error) => self.broken(error),
        }
    }

    fn broken(&self, how: String) -> SessionEnd {
        self.context.history.record(&Event::Broken { c: self.c, how });
        SessionEnd::Broken
    }
}

/// Ends a connection without a WebSocket close: stops reading it, resets it, or drops it.
pub fn abandon(context: &Context, c: u64, socket: Socket, random: &mut Random, unread: &mut Vec<Socket>) {
    let how = match random.within(0..=2) {
        0 => {
            unread.push(socket);
            unread.drain(..unread.len().saturating_sub(UNREAD_SOCKETS_MAX));
            "stopped reading"
        }
        1 => {
            socket.reset();
            "reset"
        }
        _ => {
            drop(socket);
            "dropped"
        }
    };
    context.history.record(&Event::Broken { c, how: how.into() });
}

/// Closes a connection, and records that the server closed it too.
pub async fn close(context: &Context, c: u64, socket: Socket) -> Result<(), String> {
    socket.close().await?;
    context.history.record(&Event::Closed { c });
    Ok(())
}

/// Connects as a user, without a device and without resuming.
pub async fn connect(
    context: &Context,
    c: u64,
    number: u64,
    address: SocketAddr,
    user: &str,
) -> Result<Socket, String> {
    connect_as(context, c, RunningServer { number, address }, user, (None, None)).await
}

/// Connects as a user. Resumes after a sequence and uses a device, if they are given.
pub async fn connect_as(
    context: &Context,
    c: u64,
    server: RunningServer,
    user: &str,
    (after, device): (Option<u64>, Option<&str>),
) -> Result<Socket, String> {
    let RunningServer { number, address } = server;
    let connecting =
        Event::Connecting { server: number, c, user: user.to_owned(), after, device: device.map(str::to_owned) };
    context.history.record(&connecting);
    let socket = Socket::connect_as(address, user, after, device).await?;
    context.history.record(&Event::Connected { c });
    Ok(socket)
}

/// Records an event of a socket, and answers a heartbeat.
pub async fn handle(
    context: &Context,
    c: u64,
    socket: &mut Socket,
    event: Result<socket::Event, String>,
    messages_left: &mut u64,
) -> Result<(), String> {
    match event? {
        socket::Event::Message(message) => {
            let number = |key: &str| message.d[key].as_u64().unwrap_or(u64::MAX);
            let x = message.d["x"].as_str().map_or(u64::MAX, |x| x.len() as u64);
            context.history.record(&Event::Received { c, b: number("b"), n: number("n"), x, s: message.s });
            *messages_left = messages_left.saturating_sub(1);
        }
        socket::Event::AckRequest => {
            context.history.record(&Event::HeartbeatReceived { c });
            socket.acknowledge().await?;
            context.history.record(&Event::HeartbeatAnswered { c });
        }
        socket::Event::Resumed(_) => return Err("op 13 on a connection that does not resume".into()),
        socket::Event::Ack => return Err("op 11 without an op 1 of the client".into()),
    }
    Ok(())
}
