//! Tests a log output that is not read or cannot be written.
//!
//! The server keeps serving. If the log is read, the last lines before the process ends are in it.

use std::{
    fs::{self, File},
    io::{PipeWriter, Read as _},
    process::{Command, Stdio},
};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::event::{PollFd, PollFlags};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    WAIT_TIMEOUT,
    support::{
        http::Http,
        server::{Home, Process, Server},
        socket::connect_websocket,
        wait::block_until,
    },
};

/// Starts a server that writes its log to `log`: a pipe or a device file.
fn start_with_log(home: &Home, log: impl Into<Stdio>) -> Server {
    let mut command = home.command(&[]);
    command.stderr(log);
    home.wait_until_ready(Process::new(command.spawn().expect("the binary starts")))
}

/// Waits until a pipe is full: the bytes in it vary, because a line that does not fit into a page begins the next one.
fn wait_until_full(pipe: &PipeWriter) {
    let no_time = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    block_until("a full pipe", || {
        rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&no_time)).expect("a pipe") == 0
    });
}

fn pipe() -> (std::io::PipeReader, PipeWriter) {
    std::io::pipe().expect("a pipe")
}

/// Connects clients that each send a malformed frame. The server logs the first, and the others at debug.
async fn send_malformed_frames(server: &Server, clients: usize) {
    for _ in 0..clients {
        let mut socket = connect_websocket(server.address).await.expect("a WebSocket");
        socket.send(Message::text("nonsense")).await.expect("the frame is sent");
        let ends = async { while let Some(Ok(_)) = socket.next().await {} };
        timeout(WAIT_TIMEOUT, ends).await.expect("the server closes the connection");
    }
}

/// Asserts that the server is healthy and ready, and answers a dispatch.
fn assert_serves(server: &Server) {
    let mut http = Http::connect(server.address).expect("a connection");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http.status(path).expect("a response"), 200, "{path}");
    }
    http.dispatch(&json!(1), &["alice".to_owned()]).expect("a response");
}

/// Waits until the server has counted a dropped log line.
fn wait_for_dropped_line(server: &Server) {
    let mut http = Http::connect(server.address).expect("a connection");
    block_until("a dropped log line", || http.metric("mesa_log_lines_dropped_total") > 0);
}

#[tokio::test]
async fn server_with_closed_log_pipe_serves_and_stops_cleanly() {
    let home = Home::new();
    let (reader, writer) = pipe();
    let server = start_with_log(&home, writer);
    drop(reader);
    send_malformed_frames(&server, 5).await;
    assert_serves(&server);
    wait_for_dropped_line(&server);
    server.stop(WAIT_TIMEOUT);
}

#[tokio::test]
async fn server_with_log_on_full_device_serves_and_stops_cleanly() {
    let home = Home::new();
    let server = start_with_log(&home, File::options().write(true).open("/dev/full").expect("a full device"));
    send_malformed_frames(&server, 5).await;
    assert_serves(&server);
    wait_for_dropped_line(&server);
    server.stop(WAIT_TIMEOUT);
}

#[tokio::test]
async fn server_with_log_at_file_size_limit_serves_and_stops_cleanly() {
    // Larger than each file of the store, which has the same limit.
    const FILE_BYTES_MAX: u64 = 64 << 20;
    let home = Home::new();
    let log = File::options().create(true).append(true).open(home.path("large")).expect("a log");
    log.set_len(FILE_BYTES_MAX).expect("a length");
    let mut command = home.command(&["prlimit", &format!("--fsize={FILE_BYTES_MAX}")]);
    command.stderr(log);
    let server = home.wait_until_ready(Process::new(command.spawn().expect("prlimit starts")));
    send_malformed_frames(&server, 5).await;
    assert_serves(&server);
    wait_for_dropped_line(&server);
    server.stop(WAIT_TIMEOUT);
}

#[tokio::test]
async fn server_with_stalled_log_reader_serves_and_stops_cleanly() {
    // At debug no line is suppressed, and a thousand malformed frames fill a pipe.
    let home = Home::with_settings("log: { level: 'mesa=debug' },");
    let (reader, writer) = pipe();
    let server = start_with_log(&home, writer.try_clone().expect("a copy of the pipe"));
    send_malformed_frames(&server, 1000).await;
    wait_until_full(&writer);
    assert_serves(&server);
    server.stop(WAIT_TIMEOUT);
    drop(reader);
}

#[test]
fn server_with_closed_standard_output_serves() {
    let home = Home::new();
    let (reader, writer) = pipe();
    drop(reader);
    let mut command = home.command(&[]);
    command.stdout(writer);
    let server = home.wait_until_ready(Process::new(command.spawn().expect("the binary starts")));
    assert_serves(&server);
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn clean_stop_writes_its_last_lines_to_the_log() {
    let home = Home::new();
    home.start().stop(WAIT_TIMEOUT);
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert!(log.lines().last().is_some_and(|line| line.contains("stopped")), "{log}");
}

#[test]
fn failed_start_writes_its_reason_as_last_line_of_the_log() {
    let home = Home::new();
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = occupied.local_addr().expect("an address").port().to_string();
    let mut command = home.command(&[]);
    command.args(["--port", &port]);
    let status = Process::new(command.spawn().expect("the binary starts")).wait(WAIT_TIMEOUT);
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(home.path("log")).expect("a log");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("mesa: ") && last.contains("is in use"), "{log}");
}

#[test]
fn failed_start_with_stalled_log_reader_ends() {
    let home = Home::new();
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = occupied.local_addr().expect("an address").port().to_string();
    let (reader, mut writer) = pipe();
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe that does not block");
    // Fills the pipe before the server starts.
    while std::io::Write::write(&mut writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe that blocks");
    let mut command = home.command(&[]);
    command.args(["--port", &port]).stderr(writer);
    let status = Process::new(command.spawn().expect("the binary starts")).wait(WAIT_TIMEOUT);
    assert_eq!(status.code(), Some(1));
    drop(reader);
}

#[test]
fn command_with_closed_standard_output_ends_without_error_output() {
    let commands: [&[&str]; 4] = [
        &["--help"],
        &["config", "print", "--dev"],
        &["token", "--id", "a", "--secret", "sixteen-bytes-xx"],
        &["serve", "--help"],
    ];
    for args in commands {
        let (reader, writer) = pipe();
        drop(reader);
        let (mut errors, errors_to) = pipe();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
        command.args(args).env_clear().stdin(Stdio::null()).stdout(writer).stderr(errors_to);
        let mut process = command.spawn().expect("the binary starts");
        drop(command);
        let mut text = String::new();
        errors.read_to_string(&mut text).expect("text");
        let status = process.wait().expect("the process ends");
        assert!(
            status.success() && !text.contains("panicked") && !text.contains("mesa:"),
            "{args:?}: {status}, {text}"
        );
    }
}

#[test]
fn user_signal_is_ignored_with_one_log_line() {
    use rustix::process::Signal;
    let home = Home::new();
    let server = home.start();
    for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        server.signal(signal);
        home.wait_for_log(|log| log.contains(name));
        assert_serves(&server);
    }
    server.stop(WAIT_TIMEOUT);
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert_eq!(log.matches("is ignored").count(), 2, "{log}");
}
