//! What backends did, what logs say, and whether the two agree. Knows no server: it is given both.

use std::collections::{BTreeMap, HashMap, HashSet};

/// A message, by the backend that sent it and that backend's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// Who sent it.
    pub backend: u64,
    /// Its number there: a backend counts up, and never uses one twice.
    pub n: u64,
}

/// One dispatch, as its backend remembers it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Which.
    pub mark: Mark,
    /// For whom.
    pub recipients: Vec<String>,
    /// Whether the server said that it has it. Otherwise it may have it or not.
    pub answered: bool,
}

/// A log as it was read: sequence and message.
pub type Log = Vec<(u64, Mark)>;

/// Holds the logs of all users, each read whole, against everything that was sent.
///
/// # Errors
/// With the first thing that is wrong.
pub fn check_logs(history: &[Sent], logs: &BTreeMap<String, Log>) -> Result<(), String> {
    for (user, log) in logs {
        if let Some((at, (seq, _))) = log.iter().enumerate().find(|(at, (seq, _))| *seq != *at as u64 + 1) {
            return Err(format!("{user}: sequence {seq} stands at place {}", at + 1));
        }
        check_messages(history, user, &log.iter().map(|(_, mark)| *mark).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Holds what one user has against everything that was sent: each answered message is there, nothing is there twice or
/// was for someone else, and the messages of each backend are in its order.
///
/// # Errors
/// With the first thing that is wrong.
pub fn check_messages(history: &[Sent], user: &str, messages: &[Mark]) -> Result<(), String> {
    let meant: HashMap<Mark, bool> = history
        .iter()
        .filter(|sent| sent.recipients.iter().any(|recipient| recipient == user))
        .map(|sent| (sent.mark, sent.answered))
        .collect();
    let mut here = HashSet::new();
    let mut last: HashMap<u64, u64> = HashMap::new();
    for mark in messages {
        if !meant.contains_key(mark) {
            return Err(format!("{user}: has {mark:?}, which was never sent there"));
        }
        if !here.insert(*mark) {
            return Err(format!("{user}: has {mark:?} twice"));
        }
        if let Some(before) = last.insert(mark.backend, mark.n).filter(|before| *before > mark.n) {
            return Err(format!("{user}: has {mark:?} after number {before}"));
        }
    }
    match meant.iter().filter(|(mark, answered)| **answered && !here.contains(mark)).map(|(mark, _)| mark).min() {
        Some(lost) => Err(format!("{user}: {lost:?} was answered, and is lost")),
        None => Ok(()),
    }
}

/// What a user received over several connections, as one list: a connection may begin with what the one before it had
/// and did not confirm, and goes on from there without a gap.
///
/// # Errors
/// When a repetition is out of order.
pub fn without_repetitions(connections: &[Vec<Mark>]) -> Result<Vec<Mark>, String> {
    let mut all: Vec<Mark> = Vec::new();
    for received in connections {
        let from = received.first().and_then(|first| all.iter().position(|mark| mark == first)).unwrap_or(all.len());
        let known = (all.len() - from).min(received.len());
        if all[from..from + known] != received[..known] {
            return Err(format!(
                "repeated in another order: {:?} as {:?}",
                &all[from..from + known],
                &received[..known]
            ));
        }
        all.extend(&received[known..]);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(backend: u64, n: u64) -> Mark {
        Mark { backend, n }
    }

    /// Two backends, three messages each to alice and bob; the last of each was never answered.
    fn history() -> Vec<Sent> {
        (0..2)
            .flat_map(|backend| (0..3).map(move |n| (backend, n)))
            .map(|(backend, n)| Sent {
                mark: mark(backend, n),
                recipients: vec!["alice".to_owned(), "bob".to_owned()],
                answered: n < 2,
            })
            .collect()
    }

    fn check(messages: &[Mark]) -> Result<(), String> {
        let log = messages.iter().enumerate().map(|(at, mark)| (at as u64 + 1, *mark)).collect();
        check_logs(&history(), &BTreeMap::from([("alice".to_owned(), log)]))
    }

    #[test]
    fn backends_may_interleave_and_the_unanswered_be_there_or_not() {
        assert_eq!(check(&[mark(0, 0), mark(1, 0), mark(1, 1), mark(0, 1)]), Ok(()));
        assert_eq!(check(&[mark(0, 0), mark(0, 1), mark(0, 2), mark(1, 0), mark(1, 1)]), Ok(()));
    }

    #[test]
    fn a_planted_loss_is_caught() {
        assert!(check(&[mark(0, 0), mark(1, 0), mark(1, 1)]).unwrap_err().contains("lost"));
        assert!(check(&[]).unwrap_err().contains("lost"));
    }

    #[test]
    fn a_planted_reorder_is_caught() {
        assert!(check(&[mark(0, 1), mark(0, 0), mark(1, 0), mark(1, 1)]).unwrap_err().contains("after"));
    }

    #[test]
    fn a_planted_duplicate_is_caught() {
        assert!(check(&[mark(0, 0), mark(0, 0), mark(0, 1), mark(1, 0), mark(1, 1)]).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_planted_stranger_is_caught() {
        assert!(check(&[mark(7, 0)]).unwrap_err().contains("never sent"));
        let mut history = history();
        history[0].recipients = vec!["bob".to_owned()];
        assert!(check_messages(&history, "alice", &[mark(0, 0)]).unwrap_err().contains("never sent"));
    }

    #[test]
    fn a_planted_hole_in_the_sequence_is_caught() {
        let whole = [mark(0, 0), mark(0, 1), mark(1, 0), mark(1, 1)];
        for seqs in [[1, 2, 4, 5], [2, 3, 4, 5], [1, 2, 2, 3]] {
            let log = seqs.into_iter().zip(whole).collect();
            let error = check_logs(&history(), &BTreeMap::from([("alice".to_owned(), log)])).unwrap_err();
            assert!(error.contains("sequence"), "{error}");
        }
    }

    #[test]
    fn a_connection_may_repeat_the_end_of_the_one_before() {
        let [a, b, c, d] = [mark(0, 0), mark(0, 1), mark(0, 2), mark(0, 3)];
        assert_eq!(without_repetitions(&[vec![a, b], vec![b, c], vec![d]]), Ok(vec![a, b, c, d]));
        assert_eq!(without_repetitions(&[vec![a, b, c], vec![], vec![a, b], vec![c, d]]), Ok(vec![a, b, c, d]));
        assert!(without_repetitions(&[vec![a, b, c], vec![a, c]]).is_err());
    }
}
