//! Prints the demo, at a pace that a reader can follow.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use super::tracker::Tracker;
use crate::output;

/// Delay between two lines.
const LINE_DELAY: Duration = Duration::from_millis(250);

/// Printer of the demo.
pub struct Narrator {
    delay: Duration,
}

impl Narrator {
    /// Creates a printer, without delays if `fast` or if standard output is no terminal.
    pub fn new(fast: bool) -> Self {
        Self { delay: if fast || !io::stdout().is_terminal() { Duration::ZERO } else { LINE_DELAY } }
    }

    /// Prints the title of a scene.
    pub fn scene(number: usize, title: &str) -> io::Result<()> {
        output::line(&format!("\n{number}. {title}"))
    }

    /// Prints what an actor did or received.
    pub async fn event(&self, actor: &str, event: &str) -> io::Result<()> {
        output::line(&format!("   {actor:<8} {event}"))?;
        tokio::time::sleep(self.delay).await;
        Ok(())
    }

    /// Prints the result.
    pub fn summary(tracker: &Tracker) -> io::Result<()> {
        output::line(&format!("\n{}, in order", tracker.arrived_of_sent()))?;
        if tracker.repeats > 0 {
            let repeats = output::count(tracker.repeats, "message");
            output::line(&format!("({repeats} repeated: sent, but not acknowledged before the connection broke)"))?;
        }
        let program = output::program();
        output::line(&format!(
            "\nNext, start a server of your own. It prints what to type then:\n  {program} serve --dev"
        ))
    }
}
