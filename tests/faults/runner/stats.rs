//! The figures of a run.

use std::{io::Write as _, time::Duration};

use super::milliseconds;
use crate::{checker::Figures, fuse_disk::Lost};

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u64,
    pub at_start: u64,
    pub stops: u64,
    pub pauses: u64,
    pub disconnects: u64,
    /// Power cuts, and what they took back; how many took back nothing, for all was synced.
    pub cuts: u64,
    lost: Lost,
    harmless: u64,
    /// How long each server took to listen.
    pub ready: Vec<Duration>,
    figures: Figures,
}

impl Tally {
    /// Faults that are proven to have fired.
    pub fn faults(&self) -> u64 {
        self.kills + self.at_start + self.stops + self.pauses + self.disconnects
    }

    /// Takes in a power cut.
    pub fn cut(&mut self, lost: Lost) {
        self.cuts += 1;
        self.harmless += u64::from(lost == Lost::default());
        self.lost.add(lost);
    }

    /// Whether power cuts have taken back anything at all.
    pub fn has_lost(&self) -> bool {
        self.lost.writes > 0
    }

    /// Takes in a chapter.
    pub fn add(&mut self, chapter: &Figures) {
        let sum = &mut self.figures;
        sum.dispatches += chapter.dispatches;
        sum.answered += chapter.answered;
        sum.refused += chapter.refused;
        sum.unknown += chapter.unknown;
        sum.duplicates += chapter.duplicates;
        sum.copies += chapter.copies;
        sum.received += chapter.received;
        sum.repeats += chapter.repeats;
        sum.connections += chapter.connections;
        sum.receipts += chapter.receipts;
        sum.resumed += chapter.resumed;
        sum.told += chapter.told;
        sum.confirmed += chapter.confirmed;
        sum.violations += chapter.violations;
    }

    pub fn median_ready(&self) -> Option<Duration> {
        self.ready_at(50)
    }

    fn ready_at(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.ready.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?)).copied()
    }

    /// One line on how it is going.
    pub fn tell_briefly(&self, name: &str, chapters: u64, took: Duration) {
        let Figures { answered, received, violations, .. } = self.figures;
        _ = writeln!(
            std::io::stderr(),
            "{name}: {:.0} s, {chapters} chapters, {} faults, {answered} dispatches answered, {received} messages received, \
             {violations} violations",
            took.as_secs_f64(),
            self.faults()
        );
    }

    /// Says it all, past the capture of test runners.
    pub fn tell(&self, name: &str, seed: u64, took: Duration) {
        let Figures { dispatches, answered, refused, unknown, duplicates, copies, .. } = self.figures;
        let Figures { received, repeats, connections, receipts, violations, .. } = self.figures;
        let Figures { resumed, told, confirmed, .. } = self.figures;
        if self.cuts > 0 {
            let Lost { writes, bytes, names } = self.lost;
            _ = writeln!(
                std::io::stderr(),
                "{name}: {} of the deaths were power cuts, which took back {writes} writes, {bytes} bytes of them, and \
                 {names} names; {} found everything synced",
                self.cuts,
                self.harmless
            );
        }
        let ready = [50, 99, 100].map(|percent| self.ready_at(percent).map_or(0.0, milliseconds));
        _ = write!(
            std::io::stderr(),
            "{name}: seed {seed}, {:.1} s\n  faults: {} kills at work, {} at start, {} ends in order, {} pauses, {} times disconnected\n  \
             backends: {answered} of {dispatches} dispatches answered ({copies} copies), {unknown} not answered, \
             {refused} refused, {duplicates} repeats of an id\n  clients: {received} messages received over {connections} \
             connections, {repeats} of them again; {receipts} receipts; {resumed} connections resumed, which were told of \
             {told} ranges that are gone, and confirmed {confirmed} times\n  ready after {:.0} ms (median), {:.0} ms (99 %), \
             {:.0} ms (longest)\n  violations: {violations}\n",
            took.as_secs_f64(),
            self.kills,
            self.at_start,
            self.stops,
            self.pauses,
            self.disconnects,
            ready[0],
            ready[1],
            ready[2]
        );
    }
}
