//! `mesa status`: shows the state of a server, once or on a refreshing screen.

mod screen;
mod text;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use mesa::dispatcher::{DispatchError, Dispatcher, Status};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{args::StatusArgs, endpoint, error::Failure, os::Signals, output};
use screen::Screen;
use text::Rates;

/// Interval between two refreshes.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the command.
pub async fn run(args: &StatusArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    let address = endpoint::address(&args.api)?;
    let status = dispatcher.status().await?;
    let received = Instant::now();
    if args.json {
        return Ok(output::json(&status)?);
    }
    if args.once || !io::stdout().is_terminal() {
        return print_lines(&text::lines(&address, &status, None));
    }
    let mut signals = Signals::new().map_err(|error| Failure::because(format!("cannot handle signals: {error}")))?;
    let mut screen = Screen::open()?;
    tokio::select! {
        refreshed = refresh(&dispatcher, &address, (status, received), &mut screen) => refreshed,
        _ = signals.next() => Ok(()),
    }
}

/// Refreshes the screen, also while the server cannot be reached. Ends only with an error that remains.
///
/// `last` is the first state, and when it was received.
async fn refresh(
    dispatcher: &Dispatcher,
    address: &str,
    mut last: (Status, Instant),
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut times = interval(REFRESH_INTERVAL);
    times.set_missed_tick_behavior(MissedTickBehavior::Skip);
    times.tick().await;
    screen.draw(&text::lines(address, &last.0, None))?;
    loop {
        times.tick().await;
        match dispatcher.status().await {
            Ok(status) => {
                let now = Instant::now();
                let rates = Rates::between(&last.0, &status, now - last.1);
                screen.draw(&text::lines(address, &status, rates.as_ref()))?;
                last = (status, now);
            }
            Err(error) if error.is_transient() => screen.draw(&unreachable(address, &last.0, &error))?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the last known state below the reason why there is no newer one.
fn unreachable(address: &str, last: &Status, error: &DispatchError) -> Vec<String> {
    let mut lines = vec![output::printable(&error.to_string()), "The last known state:".into(), String::new()];
    lines.extend(text::lines(address, last, None));
    lines
}

fn print_lines(lines: &[String]) -> Result<(), Failure> {
    Ok(output::line(&lines.join("\n"))?)
}
