//! The original Mesa (`@cryb/mesa`) 1.5.8 with a Redis that stores nothing on disk.

use std::{
    io::{self, BufRead, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

use crate::{
    clients::Protocol,
    contestant::{Answers, Contestant, Queue, Running, To},
    ours,
    process::{Processes, free_address, require},
    publisher,
};

/// Folder of the npm packages, with their lock file.
const PACKAGES: &str = "tests/node_clients";

/// Name of the original in that folder.
const PACKAGE: &str = "node_modules/stock158";

/// Hash with the pending messages of each user.
const PENDING: &str = "undelivered_messages";

pub struct Original;

impl Contestant for Original {
    fn name(&self) -> &'static str {
        "the original"
    }

    fn prepare(&self) -> Result<(), String> {
        ["redis-server", "node", "npm"].into_iter().try_for_each(|program| require(program).map(drop))?;
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGES);
        if packages.join(PACKAGE).is_dir() {
            return Ok(());
        }
        let status = Command::new("npm").args(["ci", "--loglevel=error"]).current_dir(&packages).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("`npm ci` in {PACKAGES} failed: {other:?}")),
        }
    }

    fn start(&self) -> Running {
        let (mut processes, address, redis) = (Processes::new(), free_address(), free_address());
        let redis_port = redis.port().to_string();
        let arguments = ["--port", &redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        processes.start("redis-server", &arguments, redis);
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGES).join(PACKAGE);
        // A path in quotes, escaped as in JavaScript.
        let package = serde_json::Value::from(package.to_str().expect("a path in UTF-8"));
        let script = format!(
            "const {{ default: Server }} = require({package}); \
             const server = new Server({{ port: {}, redis: 'redis://{redis}', sync: {{ enabled: true }} }}); \
             server.on('connection', (client) => client.authenticate(({{ token }}, done) => \
             done(null, {{ id: token, user: {{ id: token }} }})));",
            address.port()
        );
        processes.start("node", &["-e", &script], address);
        Running { processes, clients: address, publishers: redis }
    }

    fn protocol(&self) -> Protocol {
        Protocol::WebSocket
    }

    fn open(&self, _stream: &mut TcpStream) -> io::Result<()> {
        Ok(())
    }

    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, _number: u64) {
        command(buffer, &["PUBLISH", "ws", &ours::dispatch(to, message)]);
    }

    /// Each answer is an integer.
    fn answers(&self) -> Answers {
        Answers::Byte(b':')
    }

    /// Does what a Dispatcher of the original does for each message.
    ///
    /// It reads whether the user is online, reads the pending messages, and writes them with one more. The commands of
    /// one message to each user are pipelined. Two messages to one user at the same time would lose one.
    fn enqueue(&self, running: &Running, queue: Queue) -> io::Result<()> {
        let mut stream = BufReader::new(TcpStream::connect(running.publishers)?);
        stream.get_ref().set_nodelay(true)?;
        for _ in 0..queue.messages {
            let message = publisher::message(0);
            let names: Vec<String> = (0..queue.users).map(|user| To::Offline(user).name()).collect();
            pipeline(&mut stream, &names, |buffer, name| command(buffer, &["SISMEMBER", "connected_clients", name]))?;
            let read = |buffer: &mut Vec<u8>, name: &String| command(buffer, &["HGET", PENDING, name]);
            let pending = pipeline(&mut stream, &names, read)?;
            let more: Vec<_> = names.iter().zip(pending).collect();
            let write = |buffer: &mut Vec<u8>, (name, old): &(&String, Option<String>)| {
                command(buffer, &["HSET", PENDING, name, &with_one_more(old.as_deref(), &message)]);
            };
            pipeline(&mut stream, &more, write)?;
        }
        Ok(())
    }
}

/// Appends a command of the Redis protocol.
fn command(buffer: &mut Vec<u8>, words: &[&str]) {
    // Writing to a vector cannot fail.
    _ = write!(buffer, "*{}\r\n", words.len());
    for word in words {
        _ = write!(buffer, "${}\r\n{word}\r\n", word.len());
    }
}

/// Writes a command for each item, and returns the replies.
fn pipeline<T>(
    stream: &mut BufReader<TcpStream>,
    items: &[T],
    command: impl Fn(&mut Vec<u8>, &T),
) -> io::Result<Vec<Option<String>>> {
    let mut buffer = Vec::new();
    items.iter().for_each(|item| command(&mut buffer, item));
    let mut writer = stream.get_ref().try_clone()?;
    // Replies of many kilobytes could fill both directions: they are read while the commands are written.
    std::thread::scope(|scope| {
        let written = scope.spawn(move || writer.write_all(&buffer));
        let replies = items.iter().map(|_| reply(stream)).collect();
        written.join().expect("a writer without a panic")?;
        replies
    })
}

/// Reads an integer or a string of the Redis protocol; `None` is a string that does not exist.
fn reply(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some((":", number)) => Ok(Some(number.to_owned())),
        Some(("$", "-1")) => Ok(None),
        Some(("$", length)) => {
            let length: usize = length.parse().map_err(io::Error::other)?;
            let mut text = vec![0; length + 2];
            stream.read_exact(&mut text)?;
            text.truncate(length);
            String::from_utf8(text).map(Some).map_err(io::Error::other)
        }
        _ => Err(io::Error::other(format!("Redis answers {line:?}"))),
    }
}

/// Appends a message to an array in JSON.
fn with_one_more(old: Option<&str>, message: &str) -> String {
    match old.and_then(|old| old.strip_suffix(']')) {
        Some(old) => format!("{old},{message}]"),
        None => format!("[{message}]"),
    }
}

/// Checks the parsers.
pub fn check() {
    let mut replies: &[u8] = b":1\r\n$-1\r\n$3\r\na]\n\r\n-ERR no\r\n";
    assert_eq!(reply(&mut replies).expect("an integer").as_deref(), Some("1"));
    assert_eq!(reply(&mut replies).expect("no string"), None);
    assert_eq!(reply(&mut replies).expect("a string").as_deref(), Some("a]\n"));
    assert!(reply(&mut replies).is_err());
    assert_eq!(with_one_more(None, "{}"), "[{}]");
    assert_eq!(with_one_more(Some("[{}]"), "{}"), "[{},{}]");
    let mut buffer = Vec::new();
    command(&mut buffer, &["GET", "ab"]);
    assert_eq!(buffer, b"*2\r\n$3\r\nGET\r\n$2\r\nab\r\n");
}
