//! NATS: core for online users; for offline users a `JetStream` with a file, which is synced every two minutes.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
};

use crate::{
    clients::Protocol,
    contestant::{Answers, Contestant, Running, To},
    process::{Processes, free_address, require},
};

/// Begins a connection. The server does not answer what succeeds.
pub const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"0\"}\r\n";

/// Stream with the messages of offline users.
pub const STREAM: &str = "inbox";

/// Subject for the answers to a publisher.
const ANSWERS: &str = "answers";

pub struct Nats;

impl Contestant for Nats {
    fn name(&self) -> &'static str {
        "NATS"
    }

    fn prepare(&self) -> Result<(), String> {
        require("nats-server").map(drop)
    }

    fn start(&self) -> Running {
        let (mut processes, address) = (Processes::new(), free_address());
        let (port, store, log) = (address.port().to_string(), processes.path("store"), processes.path("log"));
        let arguments = ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", &store, "-l", &log];
        let program = require("nats-server").expect("a program that `prepare` has found");
        processes.start(program, &arguments, address);
        Running { processes, clients: address, publishers: address }
    }

    fn protocol(&self) -> Protocol {
        Protocol::Nats
    }

    fn open(&self, stream: &mut TcpStream) -> io::Result<()> {
        // The greeting of the server contains a closing brace, like an answer.
        let mut greeting = String::new();
        BufReader::with_capacity(1 << 16, stream.try_clone()?).read_line(&mut greeting)?;
        write!(stream, "{CONNECT}SUB {ANSWERS} 1\r\n")
    }

    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, _number: u64) {
        let subject = match to {
            To::Offline(_) => format!("{STREAM}.{} {ANSWERS}", to.name()),
            to => to.name(),
        };
        // Writing to a vector cannot fail.
        _ = write!(buffer, "PUB {subject} {}\r\n{message}\r\n", message.len());
    }

    /// Each answer of a stream is an object. Core NATS answers nothing.
    fn answers(&self) -> Answers {
        Answers::Byte(b'}')
    }

    fn create_queues(&self, running: &Running, _users: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(running.clients)?;
        self.open(&mut stream)?;
        let config = format!(r#"{{"name":"{STREAM}","subjects":["{STREAM}.*"],"storage":"file"}}"#);
        write!(stream, "PUB $JS.API.STREAM.CREATE.{STREAM} {ANSWERS} {}\r\n{config}\r\n", config.len())?;
        let mut lines = BufReader::new(stream).lines();
        let answer = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with('{'))).transpose()?;
        match answer {
            Some(answer) if !answer.contains("\"error\"") => Ok(()),
            other => Err(io::Error::other(format!("no stream: {other:?}"))),
        }
    }
}
