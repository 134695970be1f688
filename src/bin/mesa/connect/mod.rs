//! `mesa connect`: a user at a terminal. Prints what arrives, sends what is typed, and comes back when it loses the server.

mod input;

use std::{io::BufRead, time::Duration};

use mesa::{
    client::{self, ClientError, Connection, ConnectionEvent, Missed, close_code},
    message::{DeviceId, Seq},
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
use input::Typed;

/// How long to wait before connecting again, unless the server says otherwise.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// Lines that were typed and not sent yet; more wait in the terminal or the pipe.
const LINES_MAX: usize = 16;

/// How long what was printed may wait to be confirmed after a resume: each confirmation is a frame, and a server takes only
/// so many a second.
const CONFIRM_WITHIN: Duration = Duration::from_millis(100);

/// Where a client that resumes has come to.
#[derive(Debug)]
struct Progress {
    /// The last message that was printed.
    after: Seq,
    /// By then it is to be confirmed, if it is not.
    confirm_by: Option<Instant>,
}

/// How a connection ended.
enum End {
    /// The person left.
    Quit,
    /// The connection did.
    Closed { code: u16, reason: String },
}

/// Connects, and stays.
pub async fn run(args: &ConnectArgs) -> Result<(), Failure> {
    let typed = args.user.as_deref().or(args.token.as_deref());
    let Some(token) = endpoint::typed_or_set(typed, "MESA_TOKEN")? else {
        return Err(Failure::usage(
            "who is this? Give --as USER for a server that takes user ids (serve --dev), else set MESA_TOKEN (or give \
             --token); `mesa token` makes one",
        ));
    };
    let url = endpoint::websocket_url(args.url.as_deref())?;
    let device = args.device.as_deref().map(DeviceId::new).transpose().map_err(Failure::usage)?;
    let mut progress = args.after.map(|after| Progress { after, confirm_by: None });
    let mut lines = Lines::read();
    let mut interval = RECONNECT_INTERVAL;
    let mut connected_before = false;
    loop {
        // What is missed between two connections was not meant by --no-sync.
        let should_sync = connected_before || !args.no_sync;
        let after = progress.as_ref().map(|progress| progress.after);
        let mut options = client::Options::default().should_sync(should_sync);
        (options.after, options.device) = (after, device.clone());
        let lost = match enter(&url, &token, &options).await {
            Ok(mut client) => {
                connected_before = true;
                interval = client.hello().reconnect_interval.unwrap_or(interval);
                let end = stay(&mut client, &mut lines, progress.as_mut(), args.json).await;
                // A server that is about to go may have named another interval meanwhile.
                interval = client.hello().reconnect_interval.unwrap_or(interval);
                match end? {
                    End::Quit => {
                        client.close().await;
                        return Ok(());
                    }
                    End::Closed { code: 1000, .. } => {
                        remark("* the server asked this client to go");
                        return Ok(());
                    }
                    End::Closed { code, reason } => {
                        let why = ClientError::Refused { code, reason };
                        if args.once || !close_code::comes_back(code) {
                            return Err(Failure::because(why));
                        }
                        why
                    }
                }
            }
            Err(error) if connected_before && !args.once && error.may_pass() => error,
            Err(error) => return Err(Failure::because(error)),
        };
        let pause = jittered(interval);
        remark(&format!("* {}; again in {:.1} s", printable(&lost.to_string()), pause.as_secs_f64()));
        if !lines.wait(pause).await {
            return Ok(());
        }
    }
}

/// Connects and authenticates.
async fn enter(url: &str, token: &str, options: &client::Options) -> Result<Connection, ClientError> {
    let mut client = Connection::connect(url).await?;
    let user = client.authenticate_with(client::token(token), options).await?;
    let who = user.get("id").and_then(|id| id.as_str()).map(|id| format!(" as {}", printable(id)));
    // A query may have a secret in it; an address with a user name does not connect.
    let address = url.split(['?', '#']).next().unwrap_or_default();
    remark(&format!("* connected to {address}{}; type to send, /quit to leave", who.unwrap_or_default()));
    Ok(client)
}

/// Prints and sends until one side has had enough.
async fn stay(
    client: &mut Connection,
    lines: &mut Lines,
    mut progress: Option<&mut Progress>,
    json: bool,
) -> Result<End, Failure> {
    loop {
        let confirm_by = progress.as_ref().and_then(|progress| progress.confirm_by);
        tokio::select! {
            () = until(confirm_by) => if let Some(progress) = &mut progress {
                progress.confirm_by = None;
                client.confirm(progress.after).await.map_err(Failure::because)?;
            },
            event = client.next() => match event.map_err(Failure::because)? {
                ConnectionEvent::Message { op, data, kind, position } => {
                    // Printed before the next one is asked for, which is what confirms it.
                    let message = Shown { op, d: &data, t: kind.as_deref(), s: position };
                    if json { output::json(&message)? } else { output::line(&message.pretty())? }
                    if let (Some(progress), Some(seq)) = (&mut progress, position) {
                        progress.after = seq;
                        progress.confirm_by.get_or_insert_with(|| Instant::now() + CONFIRM_WITHIN);
                    }
                }
                ConnectionEvent::Resumed { first, last, missed } if json => {
                    let data = to_raw_value(&json!({ "first": first, "last": last, "missed": missed }));
                    output::json(&Shown { op: 13, d: &data.map_err(Failure::because)?, t: None, s: None })?;
                }
                ConnectionEvent::Resumed { first, last, missed } => remark(&resumed(first, last, missed.as_ref())),
                ConnectionEvent::Closed { code, reason } => return Ok(End::Closed { code, reason }),
            },
            line = lines.next() => match Typed::read(&line) {
                Ok(Typed::Nothing) => {}
                Ok(Typed::Quit) => {
                    if let Some(Progress { after, confirm_by: Some(_) }) = &progress {
                        client.confirm(*after).await.map_err(Failure::because)?;
                    }
                    return Ok(End::Quit);
                }
                Ok(Typed::Frame { op, kind, data }) => {
                    if let Err(error) = client.send_frame(op, kind.as_deref(), &data).await {
                        remark(&format!("* not sent: {error}"));
                    }
                }
                Err(mistake) => remark(&format!("* not sent: {mistake}")),
            },
        }
    }
}

/// What a client that resumes is told, for people.
fn resumed(first: Seq, last: Seq, missed: Option<&Missed>) -> String {
    let there = if first > last {
        format!("* nothing is there; the last message was #{last}")
    } else {
        format!("* messages #{first} to #{last} are there")
    };
    match missed {
        None => there,
        Some(missed) => {
            format!("{there}; #{} to #{} are not any more ({})", missed.from, missed.to, printable(&missed.reason))
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A message on its way to standard output.
#[derive(Serialize)]
struct Shown<'a> {
    op: u64,
    d: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<u64>,
}

impl Shown<'_> {
    /// For people: `#3` where it is the third of those that were missed.
    fn pretty(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.s.map(|position| format!("#{position}")));
        parts.extend((self.op != 0).then(|| format!("op {}", self.op)));
        parts.extend(self.t.map(printable));
        parts.push(printable(self.d.get()));
        parts.join(" ")
    }
}

/// Standard input, line by line.
struct Lines {
    /// `None` once it has ended; the connection goes on without.
    source: Option<mpsc::Receiver<String>>,
}

impl Lines {
    /// Begins to read. On a thread of its own: a read from a terminal cannot be called off, and the program must be able
    /// to end while one is under way.
    fn read() -> Self {
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

    /// The next line; never, after the last.
    async fn next(&mut self) -> String {
        if let Some(source) = &mut self.source {
            if let Some(line) = source.recv().await {
                return line;
            }
            self.source = None;
        }
        std::future::pending().await
    }

    /// Waits to connect again; `false` when the person would rather leave.
    async fn wait(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                line = self.next() => match Typed::read(&line) {
                    Ok(Typed::Quit) => return false,
                    Ok(Typed::Nothing) => {}
                    _ => remark("* not connected just now, so not sent"),
                },
            }
        }
    }
}

/// Up to a fifth more or less, so that clients that were lost together do not all come back together.
fn jittered(interval: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    interval.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_shown_on_one_line() {
        let data = RawValue::from_string("{\"n\":\n1}".into()).unwrap();
        let shown = |op, t, s| Shown { op, d: &data, t, s }.pretty();
        assert_eq!(shown(0, Some("NEWS"), Some(3)), "#3 NEWS {\"n\":\\u{a}1}");
        assert_eq!(shown(100, None, None), "op 100 {\"n\":\\u{a}1}");
    }

    #[test]
    fn as_json_a_message_is_what_the_server_sent() {
        let data = RawValue::from_string("{\"n\":1.0}".into()).unwrap();
        let shown = Shown { op: 0, d: &data, t: Some("NEWS"), s: Some(3) };
        assert_eq!(serde_json::to_string(&shown).unwrap(), r#"{"op":0,"d":{"n":1.0},"t":"NEWS","s":3}"#);
    }

    #[test]
    fn a_resume_says_what_is_there_and_what_is_not() {
        let missed = serde_json::from_str(r#"{"from":12,"to":40,"reason":"quota"}"#).unwrap();
        assert_eq!(resumed(1, 57, None), "* messages #1 to #57 are there");
        assert_eq!(
            resumed(41, 57, Some(&missed)),
            "* messages #41 to #57 are there; #12 to #40 are not any more (quota)"
        );
        assert_eq!(resumed(58, 57, None), "* nothing is there; the last message was #57");
    }

    #[test]
    fn clients_do_not_come_back_all_at_once() {
        let pauses: Vec<_> = (0..100).map(|_| jittered(RECONNECT_INTERVAL)).collect();
        assert!(pauses.iter().all(|pause| (4.0..=6.0).contains(&pause.as_secs_f64())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| pause != &pauses[0]));
    }

    #[test]
    fn a_refusal_is_not_tried_again_and_an_absence_is() {
        let refused = |code| ClientError::Refused { code, reason: String::new() };
        assert!(!refused(1008).may_pass());
        assert!(refused(1013).may_pass());
        assert!(ClientError::Unreachable { address: "a:1".into(), reason: "connection refused".into() }.may_pass());
    }
}
