//! `mesa events`: prints what clients do, as it happens.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use mesa::{
    dispatcher::Dispatcher,
    portal::{ObservedEvent, Observer},
    util::{backoff::jitter, rfc3339::rfc3339},
};

use crate::{
    args::{EventKind, EventsArgs, user_id},
    endpoint,
    error::Failure,
    output::{self, count, printable, remark},
};

/// Delay before a reconnect, on average.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(2);

/// Type of an event that reports missed ones.
const DROPPED: &str = "dropped";

/// Events to print.
struct Filter {
    /// Users; all if empty.
    users: Vec<String>,
    /// Types; all if empty.
    kinds: Vec<EventKind>,
}

impl Filter {
    fn accepts(&self, event: &ObservedEvent) -> bool {
        let by_user = self.users.is_empty() || event.user.as_ref().is_some_and(|user| self.users.contains(user));
        let by_kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.name() == event.kind);
        // Missed events could have been of any user and type.
        (by_user && by_kind) || event.kind == DROPPED
    }
}

/// Runs the command until the user or the reader of its output ends it.
pub async fn run(args: &EventsArgs) -> Result<(), Failure> {
    let users = args.users.iter().map(|id| Ok(user_id(id)?.to_string())).collect::<Result<_, Failure>>()?;
    let filter = Filter { users, kinds: args.kinds.clone() };
    let dispatcher = endpoint::dispatcher(&args.api)?;
    tokio::select! {
        ended = follow(&dispatcher, &filter, args.json) => ended,
        () = output::reader_closed() => Err(Failure::PipeClosed),
    }
}

/// Prints events, and reconnects. Ends only with an error that a retry would not remove.
async fn follow(dispatcher: &Dispatcher, filter: &Filter, json: bool) -> Result<(), Failure> {
    let mut observer = Observer::connect(dispatcher).await?;
    remark("* connected; Ctrl-C to end");
    loop {
        let lost = loop {
            match observer.next().await {
                Ok(event) if !filter.accepts(&event) => {}
                Ok(event) if json => output::json(&event.json)?,
                Ok(event) => output::line(&row(&event, SystemTime::now()))?,
                Err(end) => break end.to_string(),
            }
        };
        observer = reconnect(dispatcher, lost).await?;
        remark("* connected again; events meanwhile were missed");
    }
}

async fn reconnect(dispatcher: &Dispatcher, lost: String) -> Result<Observer, Failure> {
    let mut why = lost;
    loop {
        let delay = jitter(RECONNECT_INTERVAL);
        remark(&format!("* {}; reconnecting in {:.1} s", printable(&why), delay.as_secs_f64()));
        tokio::time::sleep(delay).await;
        match Observer::connect(dispatcher).await {
            Ok(observer) => return Ok(observer),
            Err(error) if error.is_transient() => why = error.to_string(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Formats an event as one line, with the time at which it arrived here.
fn row(event: &ObservedEvent, at: SystemTime) -> String {
    let at = rfc3339(at);
    if event.kind == DROPPED {
        let missed = event.count.map_or_else(|| "events".into(), |missed| count(missed, "event"));
        return format!("{at}  {DROPPED}         {missed} missed: this command reads too slowly");
    }
    let user = event.user.as_deref().unwrap_or("-");
    let mut line =
        format!("{at}  {:<14}  #{:<6} {}", printable(&event.kind), printable(&event.connection), printable(user));
    if let Some(message) = &event.message {
        let data = message.data.as_deref().map_or("", |data| data.get());
        let op = if message.op == 0 { String::new() } else { format!("op {} ", message.op) };
        // Writing to a String cannot fail.
        _ = write!(line, "  {op}{} {}", printable(message.kind()), printable(data));
    }
    if let Some(reason) = &event.reason {
        _ = write!(line, "  ({})", printable(reason));
    }
    line
}
