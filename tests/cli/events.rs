//! Tests `mesa events`.

use std::{
    io::BufReader,
    process::{ChildStderr, ChildStdout, Stdio},
    sync::mpsc::{self, Receiver as Lines},
    thread,
};

use serde_json::{Value, json};

use crate::{
    WAIT_TIMEOUT,
    support::{
        command::mesa_command,
        http_receiver::{Receiver, Response},
        server::{Home, KEY, Process},
        socket::Socket,
    },
};

/// A running `mesa events`, and its lines.
struct Events {
    process: Process,
    out: Lines<String>,
    remarks: Lines<String>,
}

impl Events {
    /// Starts the command, and waits until it is connected.
    fn start(address: std::net::SocketAddr, args: &[&str]) -> Self {
        let mut command = mesa_command();
        command.args(["events", "--url", &format!("http://{address}")]).args(args).env("MESA_API_KEY", KEY);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let out = out_lines(child.stdout.take().expect("a pipe"));
        let remarks = error_lines(child.stderr.take().expect("a pipe"));
        let events = Self { process: Process::new(child), out, remarks };
        assert_eq!(events.remark(), "* connected; Ctrl-C to end");
        events
    }

    fn line(&self) -> String {
        self.out.recv_timeout(WAIT_TIMEOUT).expect("a line")
    }

    fn remark(&self) -> String {
        self.remarks.recv_timeout(WAIT_TIMEOUT).expect("a remark")
    }
}

fn out_lines(source: ChildStdout) -> Lines<String> {
    lines(BufReader::new(source))
}

fn error_lines(source: ChildStderr) -> Lines<String> {
    lines(BufReader::new(source))
}

fn lines(source: impl std::io::BufRead + Send + 'static) -> Lines<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || source.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_server_are_printed_filtered_and_escaped() {
    let home = Home::new();
    let server = home.start();
    let all = Events::start(server.address, &[]);
    let filtered = Events::start(server.address, &["--json", "--user", "bob,carol", "--type", "message"]);
    let connect = async |user: &str| Socket::connect(server.address, user).await.expect("the client is authenticated");
    let (mut alice, mut bob) = (connect("alice\u{202e}").await, connect("bob").await);
    let message = |n: u64| json!({ "op": 0, "t": "A\u{1b}[31m", "d": { "n": n, "text": "\u{9b}31m" } });
    alice.send_frame(&message(1)).await.expect("a frame is sent");
    bob.send_frame(&message(2)).await.expect("a frame is sent");
    let printed: Value = serde_json::from_str(&filtered.line()).expect("JSON");
    let parts = json!([printed["type"], printed["user"], printed["message"]["d"]["n"]]);
    assert_eq!(parts, json!(["message", "bob", 2]));

    let mut shown = Vec::new();
    // Two connections have no order between them.
    while shown.iter().filter(|line: &&String| line.contains("Z  message")).count() < 2 {
        shown.push(all.line());
    }
    let text = shown.join("\n");
    for kind in ["connection", "authentication", "message"] {
        assert!(shown.iter().any(|line| line.contains(&format!("Z  {kind:<14}  #"))), "{kind}: {text}");
    }
    assert!(text.contains("alice\\u{202e}") && text.contains("A\\u{1b}[31m {\"n\":1"), "{text}");
    assert!(!text.contains(|each: char| each != '\n' && (each.is_control() || each == '\u{202e}')), "{text:?}");
    alice.close().await.expect("the connection closes");
    while !all.line().contains("disconnection   #") {}
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reconnects_and_reports_what_it_misses() {
    let receiver = Receiver::start();
    let stream = |data: &str| Response::With(200, "content-type: text/event-stream\r\n".into(), data.to_owned());
    let of_alice = "retry: 1000\n\ndata: {\"type\":\"authentication\",\"connection\":\"7\",\"user\":\"alice\"}\n\n";
    let dropped = "event: dropped\ndata: {\"type\":\"dropped\",\"count\":3}\n\n";
    let busy = json!({ "error": { "code": "shutting_down", "message": "the server is stopping" } }).to_string();
    // A stream that ends, a server that is busy, a stream that goes on, and then the end of the server's patience.
    receiver.script([stream(of_alice), Response::With(503, String::new(), busy), stream(dropped)]);
    receiver.respond_with(Response::Silence);
    let events = Events::start(receiver.address, &["--user", "alice"]);
    assert!(events.line().contains("authentication  #7      alice"));
    assert!(events.remark().starts_with("* the stream of events ended: the server closed it; reconnecting in "));
    assert!(events.remark().contains("the server is stopping"));
    assert_eq!(events.remark(), "* connected again; events meanwhile were missed");
    // Also with a filter: they could have been of this user.
    assert!(events.line().contains("dropped         3 events missed"));
    assert_eq!(receiver.requests()[0].line, "GET /v1/events?observe=true HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_ends_with_exit_code_1_when_a_reconnect_is_rejected() {
    let receiver = Receiver::start();
    let ended = Response::With(200, "content-type: text/event-stream\r\n".into(), "retry: 1000\n\n".into());
    let error = json!({ "error": { "code": "unauthorized", "message": "the API key is not valid any more" } });
    receiver.script([ended]);
    receiver.respond_with(Response::With(401, "content-type: application/json\r\n".into(), error.to_string()));
    let events = Events::start(receiver.address, &[]);
    assert!(events.remark().contains("; reconnecting in "));
    let remark = events.remark();
    assert!(remark.contains("the API key is not valid any more"), "{remark}");
    assert_eq!(events.process.wait(WAIT_TIMEOUT).code(), Some(1));
    assert_eq!(receiver.requests().len(), 2, "no further attempt");
}
