//! What was sent and what arrived. Messages are numbered from 1, as they are sent.

/// The account of one run.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Dispatches that were answered.
    pub sent: u64,
    /// The highest number that arrived; all below it have.
    pub arrived: u64,
    /// Arrivals of what had arrived before. Allowed only of what was not confirmed when a connection broke.
    pub repeats: u64,
}

/// What an arrival was.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one.
    New,
    /// One that had been here before.
    Repeat,
}

impl Ledger {
    /// Writes down that number `n` arrived.
    ///
    /// # Errors
    /// When that leaves a gap or was never sent: in words.
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

    /// `13 of 13 messages arrived`
    pub fn arrived_of_sent(&self) -> String {
        format!("{} of {} arrived", self.arrived, crate::output::count(self.sent, "message"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_found_and_a_repeat_is_counted() {
        let mut ledger = Ledger { sent: 4, ..Ledger::default() };
        assert_eq!(ledger.arrive(1), Ok(Arrival::New));
        assert_eq!(ledger.arrive(2), Ok(Arrival::New));
        assert_eq!(ledger.arrive(1), Ok(Arrival::Repeat));
        assert!(ledger.arrive(4).unwrap_err().contains("message 3 was due"));
        assert!(ledger.arrive(5).is_err());
        assert!(ledger.arrive(0).is_err());
        assert_eq!((ledger.arrived_of_sent().as_str(), ledger.repeats), ("2 of 4 messages arrived", 1));
    }
}
