//! Who says what, at a pace a reader can follow.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use super::tracker::Ledger;
use crate::output;

/// Between two lines, for a reader.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the story is told.
pub struct Stage {
    pause: Duration,
}

impl Stage {
    /// Without pauses where nobody reads along.
    pub fn new(fast: bool) -> Self {
        Self { pause: if fast || !io::stdout().is_terminal() { Duration::ZERO } else { PAUSE } }
    }

    /// A new scene.
    pub fn scene(number: usize, title: &str) -> io::Result<()> {
        output::line(&format!("\n{number}. {title}"))
    }

    /// What one of them did or saw.
    pub async fn tell(&self, who: &str, what: &str) -> io::Result<()> {
        output::line(&format!("   {who:<8} {what}"))?;
        tokio::time::sleep(self.pause).await;
        Ok(())
    }

    /// How it ended.
    pub fn summary(ledger: &Ledger) -> io::Result<()> {
        output::line(&format!("\n{}, in order", ledger.arrived_of_sent()))?;
        if ledger.repeats > 0 {
            let repeats = output::count(ledger.repeats, "message");
            output::line(&format!("({repeats} came once more: sent, and not confirmed before the connection broke)"))?;
        }
        Ok(())
    }
}
