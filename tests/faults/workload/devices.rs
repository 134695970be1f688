//! Runs clients that resume.
//!
//! Each is a device of its user, remembers its last processed sequence, and acknowledges by sequence. Some connections
//! resume after an older sequence, or after 0, or do not resume.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use tokio::time::timeout;

use super::{Context, Params, RunningServer, clients};
use crate::{
    history::Event,
    support::{
        seeded_rng::Random,
        socket::{self, Resumed, Socket},
    },
};

/// Time without a frame after which a device acknowledges what it has processed.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// Longest time without a frame during a drain. Then the drain fails.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns all devices as (user, device). Some of these users also have clients without a device.
pub fn all(params: &Params) -> Vec<(String, &'static str)> {
    let devices = |at: usize| match at % 10 {
        1 | 5 | 7 => vec!["phone", "tablet"],
        3 => vec!["phone"],
        _ => vec![],
    };
    let users = params.users().enumerate();
    users.flat_map(|(at, user)| devices(at).into_iter().map(move |device| (user.clone(), device))).collect()
}

/// Returns the devices of one user.
pub fn of_user(params: &Params, user: &str) -> Vec<&'static str> {
    all(params).into_iter().filter(|(name, _)| name == user).map(|(_, device)| device).collect()
}

/// Connects again and again until the workload ends.
pub async fn run(context: &Context, user: &str, device: &str, mut random: Random) {
    let (mut unread, mut processed, mut failed) = (Vec::new(), 0, None);
    while let Some(server) = context.current.wait(failed).await {
        let messages_left = if random.one_in(3) { u64::MAX } else { random.within(0..=80) };
        let after = match random.within(0..=11) {
            0 | 1 => None,
            2 => Some(0),
            3 | 4 => Some(processed - random.within(0..=processed.min(50))),
            _ => Some(processed),
        };
        let c = context.connections.fetch_add(1, Ordering::Relaxed);
        let mut session = Session {
            context,
            c,
            after,
            messages_left,
            processed: after.unwrap_or(0),
            acknowledged: 0,
            unanswered: VecDeque::new(),
        };
        let result = match clients::connect_as(context, c, server, user, (after, Some(device))).await {
            Ok(socket) => session.run(socket, &mut random, &mut unread).await,
            Err(error) => Err(error),
        };
        failed = None;
        if let Err(how) = result {
            context.history.record(&Event::Broken { c, how });
            failed = Some(server.number);
        }
        if after.is_some() {
            processed = session.processed;
        }
    }
}

/// One session of a device.
struct Session<'a> {
    context: &'a Context,
    c: u64,
    after: Option<u64>,
    /// Messages until the client ends the connection.
    messages_left: u64,
    /// The last sequence that it has received, or that a gap covers.
    processed: u64,
    /// What it had processed when it last acknowledged.
    acknowledged: u64,
    /// The sequence acknowledged before each op 1 of the client that has no answer yet.
    unanswered: VecDeque<u64>,
}

impl Session<'_> {
    async fn run(&mut self, mut socket: Socket, random: &mut Random, unread: &mut Vec<Socket>) -> Result<(), String> {
        let acknowledge_after = random.within(1..=60);
        loop {
            if self.messages_left == 0 {
                if random.one_in(2) {
                    self.acknowledge(&mut socket, random).await?;
                }
                if random.one_in(2) {
                    return clients::close(self.context, self.c, socket).await;
                }
                clients::abandon(self.context, self.c, socket, random, unread);
                return Ok(());
            }
            let event = tokio::select! {
                event = socket.event() => event?,
                () = tokio::time::sleep(ACK_DELAY), if self.after.is_some() && self.processed > self.acknowledged => {
                    self.acknowledge(&mut socket, random).await?;
                    continue;
                }
                () = self.context.current.finished() => return clients::close(self.context, self.c, socket).await,
            };
            self.handle(&mut socket, event).await?;
            if self.after.is_some() && self.processed >= self.acknowledged + acknowledge_after {
                self.acknowledge(&mut socket, random).await?;
            }
        }
    }

    /// Records an event of the socket, and answers a heartbeat.
    async fn handle(&mut self, socket: &mut Socket, event: socket::Event) -> Result<(), String> {
        let c = self.c;
        match event {
            socket::Event::Resumed(Resumed { first, last, missed }) => {
                self.processed = missed.as_ref().map_or(self.processed, |missed| missed.to);
                let missed = missed.map(|missed| (missed.from, missed.to, missed.reason));
                self.context.history.record(&Event::Resumed { c, first, last, missed });
                Ok(())
            }
            socket::Event::Ack => {
                let s = self.unanswered.pop_front().ok_or("op 11 without an op 1 of the client")?;
                self.context.history.record(&Event::Acknowledged { c, s });
                Ok(())
            }
            event => {
                if let (Some(_), socket::Event::Message(message)) = (self.after, &event) {
                    self.processed = message.s.unwrap_or(self.processed);
                }
                clients::handle(self.context, c, socket, Ok(event), &mut self.messages_left).await
            }
        }
    }

    /// Acknowledges what was processed, if the connection resumes. One in four times up to 3 messages less.
    async fn acknowledge(&mut self, socket: &mut Socket, random: &mut Random) -> Result<(), String> {
        if self.after.is_none() {
            return Ok(());
        }
        let s =
            if random.one_in(4) { self.processed - random.within(0..=self.processed.min(3)) } else { self.processed };
        self.acknowledge_through(socket, s, random.one_in(2)).await?;
        self.acknowledged = self.processed;
        Ok(())
    }

    /// Sends op 3, and op 1 if `verify`: its answer proves that the server has received the op 3.
    async fn acknowledge_through(&mut self, socket: &mut Socket, s: u64, verify: bool) -> Result<(), String> {
        self.context.history.record(&Event::Acknowledging { c: self.c, s });
        socket.acknowledge_through(s).await?;
        if verify {
            self.unanswered.push_back(s);
            socket.request_ack().await?;
        }
        Ok(())
    }
}

/// Resumes a device after 0, receives everything up to `head`, and acknowledges it.
///
/// # Errors
/// If the connection breaks, or nothing arrives for [`DRAIN_TIMEOUT`].
pub async fn drain(
    context: &Context,
    server: RunningServer,
    user: &str,
    device: &str,
    head: u64,
) -> Result<(), String> {
    let c = context.connections.fetch_add(1, Ordering::Relaxed);
    let mut socket = clients::connect_as(context, c, server, user, (Some(0), Some(device))).await?;
    let mut session = Session {
        context,
        c,
        after: Some(0),
        messages_left: u64::MAX,
        processed: 0,
        acknowledged: 0,
        unanswered: VecDeque::new(),
    };
    loop {
        if session.processed >= head && session.acknowledged < session.processed {
            session.acknowledged = session.processed;
            session.acknowledge_through(&mut socket, session.processed, true).await?;
        }
        if session.processed >= head && session.unanswered.is_empty() {
            return clients::close(context, c, socket).await;
        }
        let event = timeout(DRAIN_TIMEOUT, socket.event()).await.map_err(|_| {
            format!("{user} on {device} is at sequence {} of {head}, and nothing more arrives", session.processed)
        })?;
        session.handle(&mut socket, event?).await?;
    }
}
