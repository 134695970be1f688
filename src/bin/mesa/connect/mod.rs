//! `mesa connect`: connects as a user. Prints messages, sends typed lines, and reconnects.

mod input;

use std::{io::BufRead, time::Duration};

use mesa::{
    client::{self, ClientError, Connection, ConnectionEvent, Gap, Transport, close_code},
    message::{DeviceId, Seq},
    util::{backoff::jitter, sleep::sleep_until_optional},
};
use serde::Serialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    args::ConnectArgs,
    endpoint,
    error::Failure,
    output::{self, printable, remark},
};
use input::Input;

/// Delay before a reconnect, unless the server announces another one.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of lines that are read ahead. Further lines stay in the terminal or pipe.
const LINES_MAX: usize = 16;

/// Longest time between printing a message and acknowledging it (op 3), after a resume.
///
/// Each acknowledgement is a frame, and a server limits frames per second.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// Position of a client that resumes.
#[derive(Debug)]
struct Progress {
    /// Sequence of the last printed message.
    after: Seq,
    /// Time at which it must be acknowledged; `None`: it is acknowledged.
    ack_by: Option<Instant>,
}

/// How a connection ended.
enum End {
    /// The user ended the command.
    Quit,
    /// The connection closed.
    Closed { code: u16, reason: String },
}

/// Runs the command until the user ends it, the reader of its output ends, or a reconnect is excluded.
pub async fn run(args: &ConnectArgs) -> Result<(), Failure> {
    tokio::select! {
        ended = stay_connected(args) => ended,
        () = output::reader_closed() => Err(Failure::PipeClosed),
    }
}

async fn stay_connected(args: &ConnectArgs) -> Result<(), Failure> {
    let given = args.user.as_deref().or(args.token.as_deref());
    let Some(token) = endpoint::option_or_variable(given, "MESA_TOKEN")? else {
        return Err(Failure::usage(
            "a token is required: give --as USER for a server that takes user ids (serve --dev), else set MESA_TOKEN (or \
             give --token); `mesa token` generates one",
        ));
    };
    let url = endpoint::websocket_url(args.url.as_deref())?;
    let device = args.device.as_deref().map(DeviceId::new).transpose().map_err(Failure::usage)?;
    let transport = args.ca.as_ref().map_or_else(Transport::default, |path| Transport::default().ca_file(path));
    let mut progress = args.after.map(|after| Progress { after, ack_by: None });
    let mut lines = InputLines::start();
    let mut interval = RECONNECT_INTERVAL;
    let mut connected_before = false;
    loop {
        // `--no-sync` discards the backlog of the first connection only.
        let should_sync = connected_before || !args.no_sync;
        let after = progress.as_ref().map(|progress| progress.after);
        let mut options = client::Options::default().should_sync(should_sync);
        (options.after, options.device) = (after, device.clone());
        let lost = match connect(&url, &transport, &token, &options).await {
            Ok(mut client) => {
                connected_before = true;
                interval = client.hello().reconnect_interval.unwrap_or(interval);
                let end = exchange(&mut client, &mut lines, progress.as_mut(), args.json).await;
                // A server that shuts down may have announced another interval meanwhile.
                interval = client.hello().reconnect_interval.unwrap_or(interval);
                match end? {
                    End::Quit => {
                        client.close().await;
                        return Ok(());
                    }
                    End::Closed { code: 1000, .. } => {
                        remark("* the server closed the connection with 1000");
                        return Ok(());
                    }
                    End::Closed { code, reason } => {
                        let why = ClientError::Closed { code, reason };
                        if args.once || !close_code::should_reconnect(code) {
                            return Err(why.into());
                        }
                        why
                    }
                }
            }
            Err(error) if connected_before && !args.once && error.is_transient() => error,
            Err(error) => return Err(error.into()),
        };
        let delay = jitter(interval);
        remark(&format!("* {}; reconnecting in {:.1} s", printable(&lost.to_string()), delay.as_secs_f64()));
        if !lines.wait(delay).await {
            return Ok(());
        }
    }
}

/// Connects and authenticates.
async fn connect(
    url: &str,
    transport: &Transport,
    token: &str,
    options: &client::Options,
) -> Result<Connection, ClientError> {
    let mut client = Connection::connect_with(url, transport).await?;
    let user = client.authenticate_with(client::token(token), options).await?;
    let id = user.get("id").and_then(|id| id.as_str()).map(|id| format!(" as {}", printable(id)));
    // The query may have a secret. `Connection::connect` rejects a URL with a user name.
    let address = url.split(['?', '#']).next().unwrap_or_default();
    remark(&format!("* connected to {address}{}; type to send, /quit to end", id.unwrap_or_default()));
    Ok(client)
}

/// Prints messages and sends typed lines until the user or the server ends the connection.
async fn exchange(
    client: &mut Connection,
    lines: &mut InputLines,
    mut progress: Option<&mut Progress>,
    json: bool,
) -> Result<End, Failure> {
    loop {
        let ack_by = progress.as_ref().and_then(|progress| progress.ack_by);
        tokio::select! {
            () = sleep_until_optional(ack_by) => if let Some(progress) = &mut progress {
                progress.ack_by = None;
                client.acknowledge(progress.after).await?;
            },
            event = client.next() => match event? {
                ConnectionEvent::Message { op, data, kind, position } => {
                    // Printed before `next`, which acknowledges it.
                    let message = PrintedMessage { op, d: &data, t: kind.as_deref(), s: position };
                    if json { output::json(&message)? } else { output::line(&message.to_text())? }
                    if let (Some(progress), Some(seq)) = (&mut progress, position) {
                        progress.after = seq;
                        progress.ack_by.get_or_insert_with(|| Instant::now() + ACK_DELAY);
                    }
                }
                ConnectionEvent::Resumed { first, last, missed } if json => {
                    let data = to_raw_value(&json!({ "first": first, "last": last, "missed": missed }));
                    output::json(&PrintedMessage { op: 13, d: &data.map_err(Failure::because)?, t: None, s: None })?;
                }
                ConnectionEvent::Resumed { first, last, missed } => remark(&describe_resume(first, last, missed.as_ref())),
                ConnectionEvent::Closed { code, reason } => return Ok(End::Closed { code, reason }),
            },
            line = lines.next() => match Input::parse(&line) {
                Ok(Input::Empty) => {}
                Ok(Input::Quit) => {
                    if let Some(Progress { after, ack_by: Some(_) }) = &progress {
                        client.acknowledge(*after).await?;
                    }
                    return Ok(End::Quit);
                }
                Ok(Input::Frame { op, kind, data }) => {
                    if let Err(error) = client.send_frame(op, kind.as_deref(), &data).await {
                        remark(&format!("* not sent: {error}"));
                    }
                }
                Err(error) => remark(&format!("* not sent: {error}")),
            },
        }
    }
}

/// Describes the result of a resume.
fn describe_resume(first: Seq, last: Seq, missed: Option<&Gap>) -> String {
    let available = if last == 0 {
        "* no messages yet".to_owned()
    } else if first > last {
        format!("* no messages pending; the last one was #{last}")
    } else {
        format!("* messages #{first} to #{last} pending")
    };
    match missed {
        None => available,
        Some(missed) => {
            format!("{available}; gap: #{} to #{} ({})", missed.from, missed.to, printable(&missed.reason))
        }
    }
}

/// A message for standard output.
#[derive(Serialize)]
struct PrintedMessage<'a> {
    op: u64,
    d: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<u64>,
}

impl PrintedMessage<'_> {
    /// Formats it as text. `#3` is its position: the sequence after a resume, else its number in the backlog.
    fn to_text(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.s.map(|position| format!("#{position}")));
        parts.extend((self.op != 0).then(|| format!("op {}", self.op)));
        parts.extend(self.t.map(printable));
        parts.push(printable(self.d.get()));
        parts.join(" ")
    }
}

/// Lines of standard input.
struct InputLines {
    /// `None` after the end of the input. The connection stays open.
    source: Option<mpsc::Receiver<String>>,
}

impl InputLines {
    /// Starts to read on a separate thread.
    ///
    /// A read from a terminal cannot be cancelled, and the program must be able to end during one.
    fn start() -> Self {
        let (sender, source) = mpsc::channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Self { source: Some(source) }
    }

    /// Returns the next line. Never returns after the last one.
    async fn next(&mut self) -> String {
        if let Some(source) = &mut self.source {
            if let Some(line) = source.recv().await {
                return line;
            }
            self.source = None;
        }
        std::future::pending().await
    }

    /// Waits before a reconnect; `false` if the user ends the command meanwhile.
    async fn wait(&mut self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                line = self.next() => match Input::parse(&line) {
                    Ok(Input::Quit) => return false,
                    Ok(Input::Empty) => {}
                    _ => remark("* not sent: not connected"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_as_text_is_one_line() {
        let data = RawValue::from_string("{\"n\":\n1}".into()).unwrap();
        let shown = |op, t, s| PrintedMessage { op, d: &data, t, s }.to_text();
        assert_eq!(shown(0, Some("NEWS"), Some(3)), "#3 NEWS {\"n\":\\u{a}1}");
        assert_eq!(shown(100, None, None), "op 100 {\"n\":\\u{a}1}");
    }

    #[test]
    fn message_as_json_is_what_the_server_sent() {
        let data = RawValue::from_string("{\"n\":1.0}".into()).unwrap();
        let shown = PrintedMessage { op: 0, d: &data, t: Some("NEWS"), s: Some(3) };
        assert_eq!(serde_json::to_string(&shown).unwrap(), r#"{"op":0,"d":{"n":1.0},"t":"NEWS","s":3}"#);
    }

    #[test]
    fn resume_is_described_with_range_and_gap() {
        let missed = serde_json::from_str(r#"{"from":12,"to":40,"reason":"quota"}"#).unwrap();
        assert_eq!(describe_resume(1, 57, None), "* messages #1 to #57 pending");
        assert_eq!(describe_resume(41, 57, Some(&missed)), "* messages #41 to #57 pending; gap: #12 to #40 (quota)");
        assert_eq!(describe_resume(1, 0, None), "* no messages yet");
        assert_eq!(describe_resume(58, 57, None), "* no messages pending; the last one was #57");
    }

    #[test]
    fn transient_error_is_retried_and_a_rejection_is_not() {
        let rejected = |code| ClientError::Closed { code, reason: String::new() };
        assert!(!rejected(1008).is_transient());
        assert!(rejected(1013).is_transient());
        assert!(ClientError::Unreachable { address: "a:1".into(), reason: "connection refused".into() }.is_transient());
    }
}
