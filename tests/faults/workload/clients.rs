//! Clients, as those that are published behave: they answer every question in order. What they do besides is their
//! manner.

use std::{net::SocketAddr, sync::atomic::Ordering};

use super::{Here, Plan, World};
use crate::{
    history::Event,
    support::{
        seeded_rng::Random,
        socket::{self, Socket},
    },
};

/// Sockets that one client has left open without reading them; the oldest goes for the next.
const SILENT_MAX: usize = 2;

/// What a client does besides reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Stays for as long as the server does, and comes back at once.
    Stays,
    /// Reads a little and is gone without closing, and comes back at once.
    Vanishes,
    /// Reads a little, closes, and comes back at once.
    Closes,
}

/// Who comes, and how: some users twice at once, and some never while it goes on.
pub fn cast(plan: &Plan) -> Vec<(String, Manner)> {
    let manners = |at: usize| match at % 10 {
        0 => vec![Manner::Stays],
        2 | 3 => vec![Manner::Vanishes],
        4 => vec![Manner::Closes],
        6 => vec![Manner::Stays, Manner::Stays],
        7 => vec![Manner::Stays, Manner::Vanishes],
        8 => vec![Manner::Closes, Manner::Vanishes],
        // Of 1 and 5 there are only devices, and 9 stays away.
        _ => vec![],
    };
    let all = plan.users().enumerate();
    all.flat_map(|(at, user)| manners(at).into_iter().map(move |manner| (user.clone(), manner))).collect()
}

/// Why a visit ended.
enum End {
    /// As the client wanted it.
    Left,
    /// The connection broke.
    Broken,
}

/// Visits until it is over.
pub async fn run(world: &World, user: &str, manner: Manner, mut random: Random) {
    let mut silent: Vec<Socket> = Vec::new();
    let mut lost = None;
    while let Some(here) = world.stage.server(lost).await {
        let few = if manner == Manner::Stays { u64::MAX } else { random.within(0..=60) };
        let mut visit = Visit { world, c: world.connections.fetch_add(1, Ordering::Relaxed), manner, few };
        lost = match visit.run(here, user, &mut random, &mut silent).await {
            End::Left => None,
            End::Broken => Some(here.life),
        };
    }
}

struct Visit<'a> {
    world: &'a World,
    c: u64,
    manner: Manner,
    /// Messages after which the client goes.
    few: u64,
}

impl Visit<'_> {
    async fn run(&mut self, here: Here, user: &str, random: &mut Random, silent: &mut Vec<Socket>) -> End {
        let mut socket = match open(self.world, self.c, here.life, here.address, user).await {
            Ok(socket) => socket,
            Err(why) => return self.broken(why),
        };
        loop {
            if self.few == 0 {
                return self.leave(socket, random, silent).await;
            }
            let event = tokio::select! {
                event = socket.event() => event,
                () = self.world.stage.over() => return self.close(socket).await,
            };
            let asked = matches!(event, Ok(socket::Event::Question));
            if let Err(why) = take(self.world, self.c, &mut socket, event, &mut self.few).await {
                return self.broken(why);
            }
            // Just behind a receipt: whatever it confirmed too much is lost now.
            if asked && self.manner != Manner::Stays && random.once_in(3) {
                self.few = 0;
            }
        }
    }

    async fn leave(&self, socket: Socket, random: &mut Random, silent: &mut Vec<Socket>) -> End {
        if self.manner == Manner::Closes {
            return self.close(socket).await;
        }
        vanish(self.world, self.c, socket, random, silent);
        End::Left
    }

    async fn close(&self, socket: Socket) -> End {
        match close(self.world, self.c, socket).await {
            Ok(()) => End::Left,
            Err(why) => self.broken(why),
        }
    }

    fn broken(&self, how: String) -> End {
        self.world.history.record(&Event::Broken { c: self.c, how });
        End::Broken
    }
}

/// Is gone without a word.
pub fn vanish(world: &World, c: u64, socket: Socket, random: &mut Random, silent: &mut Vec<Socket>) {
    let how = match random.within(0..=2) {
        0 => {
            silent.push(socket);
            silent.drain(..silent.len().saturating_sub(SILENT_MAX));
            "fell silent"
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
    world.history.record(&Event::Broken { c, how: how.into() });
}

/// Closes, and writes down that the server did too.
pub async fn close(world: &World, c: u64, socket: Socket) -> Result<(), String> {
    socket.close().await?;
    world.history.record(&Event::Closed { c });
    Ok(())
}

/// Connects as a user.
pub async fn open(world: &World, c: u64, life: u64, address: SocketAddr, user: &str) -> Result<Socket, String> {
    open_as(world, c, Here { life, address }, user, (None, None)).await
}

/// Connects as one of a user's devices, or as one that resumes, or as both: behind which sequence, and which.
pub async fn open_as(
    world: &World,
    c: u64,
    here: Here,
    user: &str,
    (after, device): (Option<u64>, Option<&str>),
) -> Result<Socket, String> {
    let Here { life, address } = here;
    let opening = Event::Opening { life, c, user: user.to_owned(), after, device: device.map(str::to_owned) };
    world.history.record(&opening);
    let socket = Socket::connect_as(address, user, after, device).await?;
    world.history.record(&Event::Opened { c });
    Ok(socket)
}

/// Writes down what came, and answers it.
pub async fn take(
    world: &World,
    c: u64,
    socket: &mut Socket,
    event: Result<socket::Event, String>,
    left: &mut u64,
) -> Result<(), String> {
    match event? {
        socket::Event::Message(message) => {
            let number = |key: &str| message.d[key].as_u64().unwrap_or(u64::MAX);
            let x = message.d["x"].as_str().map_or(u64::MAX, |x| x.len() as u64);
            world.history.record(&Event::Received { c, b: number("b"), n: number("n"), x, s: message.s });
            *left = left.saturating_sub(1);
        }
        socket::Event::Question => {
            world.history.record(&Event::Asked { c });
            socket.answer().await?;
            world.history.record(&Event::Receipted { c });
        }
        socket::Event::Resumed(_) => return Err("op 13 to one that does not resume".into()),
        socket::Event::Heard => return Err("op 11 to one that has asked nothing".into()),
    }
    Ok(())
}
