//! Tracks sent and received messages. They are numbered from 1 in the order of sending.

/// Counts of one run.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Answered dispatches.
    pub sent: u64,
    /// Highest number that has arrived. All lower ones have arrived too.
    pub arrived: u64,
    /// Repeated arrivals. Allowed only for messages without an acknowledgement when a connection broke.
    pub repeats: u64,
}

/// Kind of an arrival.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next message.
    New,
    /// A message that had arrived before.
    Repeat,
}

impl Tracker {
    /// Records the arrival of number `n`.
    ///
    /// # Errors
    /// If it leaves a gap, or was never sent.
    pub fn arrive(&mut self, n: u64) -> Result<Arrival, String> {
        let expected = self.arrived + 1;
        if n == 0 || n > self.sent {
            return Err(format!("message {n} arrived, which was never sent"));
        }
        if n > expected {
            return Err(format!("message {n} arrived where message {expected} was due: lost, or out of order"));
        }
        if n < expected {
            self.repeats += 1;
            return Ok(Arrival::Repeat);
        }
        self.arrived = n;
        Ok(Arrival::New)
    }

    /// Formats the counts: `13 of 13 messages arrived`.
    pub fn arrived_of_sent(&self) -> String {
        format!("{} of {} arrived", self.arrived, crate::output::count(self.sent, "message"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracker_finds_gaps_and_counts_repeats() {
        let mut tracker = Tracker { sent: 4, ..Tracker::default() };
        assert_eq!(tracker.arrive(1), Ok(Arrival::New));
        assert_eq!(tracker.arrive(2), Ok(Arrival::New));
        assert_eq!(tracker.arrive(1), Ok(Arrival::Repeat));
        assert!(tracker.arrive(4).unwrap_err().contains("message 3 was due"));
        assert!(tracker.arrive(5).is_err());
        assert!(tracker.arrive(0).is_err());
        assert_eq!((tracker.arrived_of_sent().as_str(), tracker.repeats), ("2 of 4 messages arrived", 1));
    }
}
