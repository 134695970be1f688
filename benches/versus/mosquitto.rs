//! mosquitto with MQTT 3.1.1 and quality of service 1. Sessions of offline users persist in memory, and on disk every 30 minutes.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

use crate::{
    clients::{Protocol, mqtt},
    contestant::{Answers, Contestant, Running, To},
    process::{Processes, free_address, require},
};

/// Bytes of CONNACK, and of PUBACK.
const ACK_BYTES: usize = 4;

/// Bytes of the answer to a subscription to two topics.
const SUBACK_BYTES: usize = 6;

/// Packet that ends a connection.
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// Number of identifiers of packets. An identifier is not 0.
const IDENTIFIERS: u64 = 65_535;

pub struct Mosquitto;

impl Contestant for Mosquitto {
    fn name(&self) -> &'static str {
        "mosquitto"
    }

    fn prepare(&self) -> Result<(), String> {
        require("mosquitto").map(drop)
    }

    fn start(&self) -> Running {
        let (mut processes, address) = (Processes::new(), free_address());
        // A server that starts as root changes to a user who may not write the directory.
        let config = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
             max_queued_messages 0\nset_tcp_nodelay true\nlog_dest stderr\nlog_type error\n{}",
            address.port(),
            processes.directory.path().display(),
            if rustix::process::geteuid().is_root() { "user root\n" } else { "" }
        );
        let file = processes.path("mosquitto.conf");
        fs::write(&file, config).expect("a file");
        let program = require("mosquitto").expect("a program that `prepare` has found");
        processes.start(program, &["-c", &file], address);
        Running { processes, clients: address, publishers: address }
    }

    fn protocol(&self) -> Protocol {
        Protocol::Mqtt
    }

    fn open(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&mqtt::connect("publisher", true))?;
        stream.read_exact(&mut [0; ACK_BYTES])
    }

    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, number: u64) {
        mqtt::publish(buffer, &to.name(), message.as_bytes(), (number % IDENTIFIERS + 1) as u16);
    }

    /// Each answer is a PUBACK.
    fn answers(&self) -> Answers {
        Answers::Length(ACK_BYTES)
    }

    /// Creates a session for each offline user. Without one, messages to its topic are dropped.
    fn create_queues(&self, running: &Running, users: usize) -> io::Result<()> {
        for user in 0..users {
            let name = To::Offline(user).name();
            let mut stream = TcpStream::connect(running.clients)?;
            stream.write_all(&mqtt::connect(&name, false))?;
            stream.read_exact(&mut [0; ACK_BYTES])?;
            stream.write_all(&mqtt::subscribe(&[&name, "all"]))?;
            stream.read_exact(&mut [0; SUBACK_BYTES])?;
            stream.write_all(&DISCONNECT)?;
            // The end of the stream shows that the server has ended the connection.
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }
}
