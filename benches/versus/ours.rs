//! This server, with dispatches in one NDJSON stream.

use std::{
    fs,
    io::{self, Write as _},
    net::TcpStream,
};

use crate::{
    clients::Protocol,
    contestant::{Answers, Contestant, Running, To},
    process::{Processes, free_address},
};

/// API key of the server.
const KEY: &str = "a-key-for-benchmarks";

/// Serves any client at any rate. Each message is synced to disk before its answer, as by default.
const SETTINGS: &str = "host: '127.0.0.1', sync: { enabled: true }, authentication: { insecure: true }, \
                        limits: { framesPerSecond: 100000, connections: 1000000 }, log: { level: 'error' }";

pub struct Ours;

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        "this server"
    }

    fn prepare(&self) -> Result<(), String> {
        Ok(())
    }

    fn start(&self) -> Running {
        let (mut processes, address) = (Processes::new(), free_address());
        let (file, store) = (processes.path("config.json5"), processes.path("store"));
        let config = format!("{{ {SETTINGS}, port: {}, api: {{ keys: ['{KEY}'] }} }}", address.port());
        fs::write(&file, config).expect("a file");
        let arguments = ["serve", "--config", &file, "--store-path", &store];
        processes.start(env!("CARGO_BIN_EXE_mesa"), &arguments, address);
        Running { processes, clients: address, publishers: address }
    }

    fn protocol(&self) -> Protocol {
        Protocol::WebSocket
    }

    fn open(&self, stream: &mut TcpStream) -> io::Result<()> {
        let head = format!(
            "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes())
    }

    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, _number: u64) {
        let line = dispatch(to, message) + "\n";
        // Writing to a vector cannot fail.
        _ = write!(buffer, "{:x}\r\n{line}\r\n", line.len());
    }

    /// Each result contains one closing brace.
    fn answers(&self) -> Answers {
        Answers::Byte(b'}')
    }
}

/// Returns a dispatch as JSON, as this server and the original expect it.
pub fn dispatch(to: To, message: &str) -> String {
    let recipient = match to {
        To::Everyone => "*".to_owned(),
        to => to.name(),
    };
    format!(r#"{{"message":{message},"recipients":["{recipient}"]}}"#)
}
