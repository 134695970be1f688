//! Collects statistics of a run.

use std::{io::Write as _, time::Duration};

use super::milliseconds;
use crate::{checker::Counts, fuse_disk::Losses};

/// Sums of all rounds so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Kills of running servers, with power cuts.
    pub kills: u64,
    pub start_kills: u64,
    pub stops: u64,
    pub pauses: u64,
    pub disconnects: u64,
    power_cuts: u64,
    /// What all power cuts removed.
    losses: Losses,
    /// Power cuts that removed nothing, because everything was synced.
    lossless_cuts: u64,
    /// Time from the start of each server until it listened.
    pub ready: Vec<Duration>,
    counts: Counts,
}

impl Stats {
    /// Returns the number of faults that have certainly happened.
    pub fn faults(&self) -> u64 {
        self.kills + self.start_kills + self.stops + self.pauses + self.disconnects
    }

    /// Adds a power cut.
    pub fn add_power_cut(&mut self, losses: Losses) {
        self.power_cuts += 1;
        self.lossless_cuts += u64::from(losses == Losses::default());
        self.losses.add(losses);
    }

    /// Reports whether any power cut removed writes.
    pub fn has_losses(&self) -> bool {
        self.losses.writes > 0
    }

    /// Adds the counts of a round.
    pub fn add_round(&mut self, round: &Counts) {
        let sum = &mut self.counts;
        sum.dispatches += round.dispatches;
        sum.accepted += round.accepted;
        sum.rejected += round.rejected;
        sum.unanswered += round.unanswered;
        sum.duplicates += round.duplicates;
        sum.entries += round.entries;
        sum.received += round.received;
        sum.repeats += round.repeats;
        sum.connections += round.connections;
        sum.heartbeat_acks += round.heartbeat_acks;
        sum.resumed += round.resumed;
        sum.gaps += round.gaps;
        sum.acks += round.acks;
        sum.violations += round.violations;
    }

    pub fn median_ready(&self) -> Option<Duration> {
        self.ready_percentile(50)
    }

    fn ready_percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.ready.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?)).copied()
    }

    /// Prints one line of progress.
    pub fn print_progress(&self, name: &str, rounds: u64, elapsed: Duration) {
        let Counts { accepted, received, violations, .. } = self.counts;
        _ = writeln!(
            std::io::stderr(),
            "{name}: {:.0} s, {rounds} rounds, {} faults, {accepted} dispatches accepted, {received} messages received, \
             {violations} violations",
            elapsed.as_secs_f64(),
            self.faults()
        );
    }

    /// Prints all statistics. Test runners do not capture them.
    pub fn print(&self, name: &str, seed: u64, elapsed: Duration) {
        let Counts { dispatches, accepted, rejected, unanswered, duplicates, entries, .. } = self.counts;
        let Counts { received, repeats, connections, heartbeat_acks, violations, .. } = self.counts;
        let Counts { resumed, gaps, acks, .. } = self.counts;
        if self.power_cuts > 0 {
            let Losses { writes, bytes, names } = self.losses;
            _ = writeln!(
                std::io::stderr(),
                "{name}: {} of the kills were power cuts, which removed {writes} writes with {bytes} bytes, and {names} \
                 changes of names; {} removed nothing",
                self.power_cuts,
                self.lossless_cuts
            );
        }
        let ready = [50, 99, 100].map(|percent| self.ready_percentile(percent).map_or(0.0, milliseconds));
        _ = write!(
            std::io::stderr(),
            "{name}: seed {seed}, {:.1} s\n  faults: {} kills of running servers, {} during start, {} SIGTERM, {} pauses, {} \
             disconnects\n  backends: {accepted} of {dispatches} dispatches accepted ({entries} entries), {unanswered} \
             attempts unanswered, {rejected} rejected, {duplicates} duplicates\n  clients: {received} messages received over \
             {connections} connections, {repeats} of them again; {heartbeat_acks} acknowledged heartbeats; {resumed} \
             connections resumed, received {gaps} gaps, and acknowledged {acks} times\n  ready after {:.0} ms (median), {:.0} \
             ms (99th percentile), {:.0} ms (longest)\n  violations: {violations}\n",
            elapsed.as_secs_f64(),
            self.kills,
            self.start_kills,
            self.stops,
            self.pauses,
            self.disconnects,
            ready[0],
            ready[1],
            ready[2]
        );
    }
}
