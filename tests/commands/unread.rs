//! A log that nobody reads, or that cannot be written: the server serves, and the last lines of a log that is read are there.

use std::{
    fs::{self, File},
    io::{PipeWriter, Read as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    http::Http,
    server::{Home, Process, Server},
};

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Capacity of a pipe on Linux.
const PIPE_BYTES: u64 = 64 << 10;

/// A server whose log goes into a pipe, or into a file of the system's.
fn serving(home: &Home, log: impl Into<Stdio>) -> Server {
    let mut command = home.command(&[]);
    command.stderr(log);
    home.wait_until_ready(Process::new(command.spawn().expect("the binary starts")))
}

fn pipe() -> (std::io::PipeReader, PipeWriter) {
    std::io::pipe().expect("a pipe")
}

/// Connects clients that each send an invalid frame. The server logs the first; the others are at debug.
async fn nonsense(server: &Server, clients: usize) {
    for _ in 0..clients {
        let stream = TcpStream::connect(server.address).await.expect("a connection");
        let url = format!("ws://{}/", server.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
        socket.send(Message::text("nonsense")).await.expect("sent");
        let ends = async { while let Some(Ok(_)) = socket.next().await {} };
        timeout(PATIENCE, ends).await.expect("the server closes the connection");
    }
}

/// Holds that dispatches are answered, and that the server says that it is well.
fn serves(server: &Server) {
    let mut http = Http::connect(server.address).expect("a connection");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http.status(path).expect("an answer"), 200, "{path}");
    }
    http.dispatch(&json!(1), &["alice".to_owned()]).expect("an answer");
}

fn stops_in_order(server: Server) {
    server.terminate();
    assert_eq!(server.process.wait(PATIENCE).code(), Some(0));
}

/// Waits until dropped lines are counted.
fn counts_dropped_lines(server: &Server) {
    let mut http = Http::connect(server.address).expect("a connection");
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, text) = http.call("GET", "/metrics", "").expect("an answer");
        let text = String::from_utf8(text).expect("text");
        let count = text.lines().find_map(|line| line.strip_prefix("mesa_log_lines_dropped_total "));
        if count.expect("the counter").parse::<u64>().expect("a number") > 0 {
            return;
        }
        assert!(Instant::now() < end, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn server_whose_log_reader_is_gone_serves_and_stops_in_order() {
    let home = Home::new();
    let (reader, writer) = pipe();
    let server = serving(&home, writer);
    drop(reader);
    nonsense(&server, 5).await;
    serves(&server);
    counts_dropped_lines(&server);
    stops_in_order(server);
}

#[tokio::test]
async fn server_whose_log_is_a_full_device_serves_and_stops_in_order() {
    let home = Home::new();
    let server = serving(&home, File::options().write(true).open("/dev/full").expect("a full device"));
    nonsense(&server, 5).await;
    serves(&server);
    counts_dropped_lines(&server);
    stops_in_order(server);
}

#[tokio::test]
async fn server_whose_log_is_as_large_as_a_file_may_be_serves_and_stops_in_order() {
    // More than the files of the store.
    const BYTES: u64 = 64 << 20;
    let home = Home::new();
    let log = File::options().create(true).append(true).open(home.path("large")).expect("a log");
    log.set_len(BYTES).expect("a length");
    let mut command = home.command(&["prlimit", &format!("--fsize={BYTES}")]);
    command.stderr(log);
    let server = home.wait_until_ready(Process::new(command.spawn().expect("prlimit starts")));
    nonsense(&server, 5).await;
    serves(&server);
    counts_dropped_lines(&server);
    stops_in_order(server);
}

#[tokio::test]
async fn server_whose_log_reader_stalls_serves_and_stops_in_order() {
    // At debug no line is suppressed, and the frames of 433 clients fill a pipe.
    let home = Home::with("log: { level: 'mesa=debug' },");
    let (reader, writer) = pipe();
    let server = serving(&home, writer);
    nonsense(&server, 1000).await;
    let bytes = rustix::io::ioctl_fionread(&reader).expect("a pipe");
    assert!(bytes > PIPE_BYTES - 4096, "{bytes} bytes do not fill the pipe");
    serves(&server);
    stops_in_order(server);
    drop(reader);
}

#[test]
fn server_whose_standard_output_is_gone_serves() {
    let home = Home::new();
    let (reader, writer) = pipe();
    drop(reader);
    let mut command = home.command(&[]);
    command.stdout(writer);
    let server = home.wait_until_ready(Process::new(command.spawn().expect("the binary starts")));
    serves(&server);
    stops_in_order(server);
}

#[test]
fn last_lines_of_a_stop_are_in_the_log() {
    let home = Home::new();
    stops_in_order(home.start());
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert!(log.lines().last().is_some_and(|line| line.contains("stopped")), "{log}");
}

#[test]
fn reason_of_a_failed_start_is_the_last_line_of_the_log() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = home.command(&[]);
    command.args(["--port", &port]);
    let status = Process::new(command.spawn().expect("the binary starts")).wait(PATIENCE);
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(home.path("log")).expect("a log");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("mesa: ") && last.contains("is in use"), "{log}");
}

#[test]
fn failed_start_whose_log_reader_stalls_ends() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (reader, mut writer) = pipe();
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe that does not block");
    // Full before the server starts.
    while std::io::Write::write(&mut writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe that blocks");
    let mut command = home.command(&[]);
    command.args(["--port", &port]).stderr(writer);
    let status = Process::new(command.spawn().expect("the binary starts")).wait(PATIENCE);
    assert_eq!(status.code(), Some(1));
    drop(reader);
}

#[test]
fn command_whose_standard_output_is_gone_ends_without_a_word() {
    let words: [&[&str]; 4] = [
        &["--help"],
        &["config", "print", "--dev"],
        &["token", "--id", "a", "--secret", "sixteen-bytes-xx"],
        &["serve", "--help"],
    ];
    for words in words {
        let (reader, writer) = pipe();
        drop(reader);
        let (mut errors, errors_to) = pipe();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
        command.args(words).env_clear().stdin(Stdio::null()).stdout(writer).stderr(errors_to);
        let mut process = command.spawn().expect("the binary starts");
        drop(command);
        let mut text = String::new();
        errors.read_to_string(&mut text).expect("text");
        let status = process.wait().expect("it ends");
        assert!(
            status.success() && !text.contains("panicked") && !text.contains("mesa:"),
            "{words:?}: {status}, {text}"
        );
    }
}

#[test]
fn signal_for_a_reload_is_ignored_with_one_line() {
    use rustix::process::Signal;
    let home = Home::new();
    let server = home.start();
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        server.signal(signal);
        home.log_once(|log| log.contains(name));
        serves(&server);
    }
    stops_in_order(server);
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert_eq!(log.matches("is ignored").count(), 3, "{log}");
    assert_eq!(log.matches("configuration is read").count(), 1, "only SIGHUP is for that: {log}");
}
