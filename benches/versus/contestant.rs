//! Describes what the load needs from a contestant.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use crate::{clients::Protocol, process::Processes, publisher};

/// Recipient of a message.
#[derive(Clone, Copy)]
pub enum To {
    Everyone,
    /// A connected user.
    User(usize),
    /// A user who connects only later.
    Offline(usize),
}

impl To {
    /// Returns the user id, or the topic of it.
    pub fn name(self) -> String {
        match self {
            Self::Everyone => "all".into(),
            Self::User(number) => format!("u{number}"),
            Self::Offline(number) => format!("q{number}"),
        }
    }
}

/// How a publisher recognises the answers to its messages.
#[derive(Clone, Copy, Debug)]
pub enum Answers {
    /// Each answer contains this byte once.
    Byte(u8),
    /// Each answer has this number of bytes.
    Length(usize),
}

/// A started server.
pub struct Running {
    pub processes: Processes,
    /// Address for clients.
    pub clients: SocketAddr,
    /// Address for publishers.
    pub publishers: SocketAddr,
}

/// Messages for offline users: each user gets as many, in turn.
#[derive(Clone, Copy)]
pub struct Queue {
    pub users: usize,
    pub messages: usize,
}

/// A server and its protocol.
pub trait Contestant {
    fn name(&self) -> &'static str;

    /// Installs what can be installed, and returns what is missing.
    fn prepare(&self) -> Result<(), String>;

    /// Starts new processes without data of an earlier run.
    fn start(&self) -> Running;

    fn protocol(&self) -> Protocol;

    /// Whether messages for offline users are stored.
    fn has_queue(&self) -> bool {
        true
    }

    /// Begins a connection of a publisher.
    fn open(&self, stream: &mut TcpStream) -> io::Result<()>;

    /// Appends a message to what a publisher writes.
    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, number: u64);

    fn answers(&self) -> Answers;

    /// Creates what must exist before messages for offline users are stored. This is not measured.
    fn create_queues(&self, _running: &Running, _users: usize) -> io::Result<()> {
        Ok(())
    }

    /// Stores messages for offline users, and returns when all are answered.
    fn enqueue(&self, running: &Running, queue: Queue) -> io::Result<()> {
        publisher::enqueue(self, running, queue)
    }
}
