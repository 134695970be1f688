//! Clients that resume: each is a device of its user, remembers the last sequence it has processed, comes back behind
//! that, and confirms by itself. Now and then one has forgotten what it knew, or comes as a stock client does.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use tokio::time::timeout;

use super::{Here, Plan, World, clients};
use crate::{
    history::Event,
    support::{
        random::Random,
        socket::{self, Resumed, Socket},
    },
};

/// Silence after which what was processed is confirmed.
const QUIET: Duration = Duration::from_millis(20);

/// Which devices there are of whom. Some of these users have stock clients beside them.
pub fn cast(plan: &Plan) -> Vec<(String, &'static str)> {
    let devices = |at: usize| match at % 10 {
        1 | 5 | 7 => vec!["phone", "tablet"],
        3 => vec!["phone"],
        _ => vec![],
    };
    let all = plan.users().enumerate();
    all.flat_map(|(at, user)| devices(at).into_iter().map(move |device| (user.clone(), device))).collect()
}

/// The devices of one user.
pub fn of(plan: &Plan, user: &str) -> Vec<&'static str> {
    cast(plan).into_iter().filter(|(name, _)| name == user).map(|(_, device)| device).collect()
}

/// Visits until it is over.
pub async fn run(world: &World, user: &str, device: &str, mut random: Random) {
    let (mut silent, mut processed, mut lost) = (Vec::new(), 0, None);
    while let Some(here) = world.stage.server(lost).await {
        let few = if random.once_in(3) { u64::MAX } else { random.within(0..=80) };
        let after = match random.within(0..=11) {
            0 | 1 => None,
            2 => Some(0),
            3 | 4 => Some(processed - random.within(0..=processed.min(50))),
            _ => Some(processed),
        };
        let c = world.connections.fetch_add(1, Ordering::Relaxed);
        let mut visit = Visit { world, c, after, few, processed: after.unwrap_or(0), said: 0, asked: VecDeque::new() };
        let ended = match clients::open_as(world, c, here, user, (after, Some(device))).await {
            Ok(socket) => visit.run(socket, &mut random, &mut silent).await,
            Err(why) => Err(why),
        };
        lost = None;
        if let Err(how) = ended {
            world.history.record(&Event::Broken { c, how });
            lost = Some(here.life);
        }
        if after.is_some() {
            processed = visit.processed;
        }
    }
}

struct Visit<'a> {
    world: &'a World,
    c: u64,
    after: Option<u64>,
    /// Messages after which it goes.
    few: u64,
    /// The last sequence it has had, or knows that it will not have.
    processed: u64,
    /// The last it has confirmed.
    said: u64,
    /// What it had confirmed each time it asked whether it was heard.
    asked: VecDeque<u64>,
}

impl Visit<'_> {
    async fn run(&mut self, mut socket: Socket, random: &mut Random, silent: &mut Vec<Socket>) -> Result<(), String> {
        let confirms_after = random.within(1..=60);
        loop {
            if self.few == 0 {
                if random.once_in(2) {
                    self.confirm(&mut socket, random).await?;
                }
                if random.once_in(2) {
                    return clients::close(self.world, self.c, socket).await;
                }
                clients::vanish(self.world, self.c, socket, random, silent);
                return Ok(());
            }
            let event = tokio::select! {
                event = socket.event() => event?,
                () = tokio::time::sleep(QUIET), if self.after.is_some() && self.processed > self.said => {
                    self.confirm(&mut socket, random).await?;
                    continue;
                }
                () = self.world.stage.over() => return clients::close(self.world, self.c, socket).await,
            };
            self.take(&mut socket, event).await?;
            if self.after.is_some() && self.processed >= self.said + confirms_after {
                self.confirm(&mut socket, random).await?;
            }
        }
    }

    /// Writes down what came.
    async fn take(&mut self, socket: &mut Socket, event: socket::Event) -> Result<(), String> {
        let c = self.c;
        match event {
            socket::Event::Resumed(Resumed { first, last, missed }) => {
                self.processed = missed.as_ref().map_or(self.processed, |missed| missed.to);
                let missed = missed.map(|missed| (missed.from, missed.to, missed.reason));
                self.world.history.record(&Event::Told { c, first, last, missed });
                Ok(())
            }
            socket::Event::Heard => {
                let s = self.asked.pop_front().ok_or("op 11 to one that has asked nothing")?;
                self.world.history.record(&Event::Confirmed { c, s });
                Ok(())
            }
            event => {
                if let (Some(_), socket::Event::Message(message)) = (self.after, &event) {
                    self.processed = message.s.unwrap_or(self.processed);
                }
                clients::take(self.world, c, socket, Ok(event), &mut self.few).await
            }
        }
    }

    async fn confirm(&mut self, socket: &mut Socket, random: &mut Random) -> Result<(), String> {
        if self.after.is_none() {
            return Ok(());
        }
        // Not always all of it: who processes in parts confirms in parts.
        let s =
            if random.once_in(4) { self.processed - random.within(0..=self.processed.min(3)) } else { self.processed };
        self.say(socket, s, random.once_in(2)).await?;
        self.said = self.processed;
        Ok(())
    }

    async fn say(&mut self, socket: &mut Socket, s: u64, asks: bool) -> Result<(), String> {
        self.world.history.record(&Event::Confirming { c: self.c, s });
        socket.confirm_through(s).await?;
        if asks {
            self.asked.push_back(s);
            socket.ask().await?;
        }
        Ok(())
    }
}

/// Receives all of a device's behind nothing, up to `head`, and confirms it.
///
/// # Errors
/// When the server goes away, or less comes.
pub async fn drain(world: &World, here: Here, user: &str, device: &str, head: u64) -> Result<(), String> {
    let c = world.connections.fetch_add(1, Ordering::Relaxed);
    let mut socket = clients::open_as(world, c, here, user, (Some(0), Some(device))).await?;
    let mut visit = Visit { world, c, after: Some(0), few: u64::MAX, processed: 0, said: 0, asked: VecDeque::new() };
    loop {
        if visit.processed >= head && visit.said < visit.processed {
            visit.said = visit.processed;
            visit.say(&mut socket, visit.processed, true).await?;
        }
        if visit.processed >= head && visit.asked.is_empty() {
            return clients::close(world, c, socket).await;
        }
        let event = timeout(PATIENCE, socket.event())
            .await
            .map_err(|_| format!("{user} on {device} has {} of {head}, and nothing more comes", visit.processed))?;
        visit.take(&mut socket, event?).await?;
    }
}

/// How long nothing may come while something is to come.
const PATIENCE: Duration = Duration::from_secs(120);
