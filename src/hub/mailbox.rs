//! What the hub leaves for a connection to pick up: signals, and the unsynced messages that pass the log by.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::message::Payload;

const LOG: u8 = 1;
const UNSYNCED: u8 = 2;
const LEAVE: u8 = 4;

/// Why a connection is told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// A backend asked for it (`DISCONNECT_CLIENT`).
    Asked,
    /// The program the server is part of asked for it, with this close code.
    With(u16),
    /// The server is shutting down.
    Shutdown,
    /// The store has failed: nothing can be promised any more.
    Failed,
}

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The user's log may have more.
    pub log: bool,
    /// Unsynced messages are waiting.
    pub unsynced: bool,
    /// The connection is to go.
    pub leave: Option<Leave>,
}

/// How much a mailbox holds. At either bound the oldest message is dropped and counted: unsynced messages are those
/// whose loss costs nothing, and memory must not depend on how slowly somebody reads.
#[derive(Clone, Copy, Debug)]
pub struct MailboxBounds {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

/// One per connection. The hub puts in and never waits; the connection's task takes out.
#[derive(Debug)]
pub struct Mailbox {
    bounds: MailboxBounds,
    signals: AtomicU8,
    waker: AtomicWaker,
    authenticated: AtomicBool,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    unsynced: VecDeque<Payload>,
    unsynced_bytes: usize,
    leave: Option<Leave>,
}

impl Mailbox {
    pub(super) fn new(bounds: MailboxBounds) -> Self {
        Self {
            bounds,
            signals: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            authenticated: AtomicBool::new(false),
            inside: Mutex::default(),
        }
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn set_authenticated(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
    }

    /// The user's log has more.
    pub(super) fn log_has_more(&self) {
        self.signal(LOG);
    }

    /// Tells the connection to go. The first reason stands.
    pub(super) fn leave(&self, why: Leave) {
        self.inside.lock().leave.get_or_insert(why);
        self.signal(LEAVE);
    }

    /// Puts in an unsynced message; returns how many old ones had to go for it.
    pub(super) fn put(&self, payload: &Payload) -> u64 {
        let mut dropped = 0;
        {
            let mut inside = self.inside.lock();
            inside.unsynced_bytes += payload.as_bytes().len();
            inside.unsynced.push_back(payload.clone());
            while inside.unsynced.len() > self.bounds.messages || inside.unsynced_bytes > self.bounds.bytes {
                let Some(oldest) = inside.unsynced.pop_front() else { break };
                inside.unsynced_bytes -= oldest.as_bytes().len();
                dropped += 1;
            }
        }
        self.signal(UNSYNCED);
        dropped
    }

    /// Takes the oldest unsynced message.
    pub fn take(&self) -> Option<Payload> {
        let mut inside = self.inside.lock();
        let oldest = inside.unsynced.pop_front();
        match &oldest {
            Some(payload) => inside.unsynced_bytes -= payload.as_bytes().len(),
            // An idle connection keeps no memory for messages it does not have.
            None => inside.unsynced = VecDeque::new(),
        }
        oldest
    }

    /// Resolves with what happened since the last call. One task may wait at a time.
    pub fn poll_signals(&self, cx: &mut Context<'_>) -> Poll<Signals> {
        // Registered first: whatever is signalled from here on wakes the task, whether or not it finds something now.
        self.waker.register(cx.waker());
        let signals = self.signals.swap(0, Ordering::AcqRel);
        if signals == 0 {
            return Poll::Pending;
        }
        let leave = if signals & LEAVE == 0 { None } else { self.inside.lock().leave };
        Poll::Ready(Signals { log: signals & LOG != 0, unsynced: signals & UNSYNCED != 0, leave })
    }

    fn signal(&self, signal: u8) {
        if self.signals.fetch_or(signal, Ordering::AcqRel) & signal == 0 {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn payload(text: &str) -> Payload {
        Payload::encode(0, Some(text), None).unwrap()
    }

    fn mailbox(messages: usize, bytes: usize) -> Mailbox {
        Mailbox::new(MailboxBounds { messages, bytes })
    }

    #[test]
    fn a_slow_connection_loses_the_oldest_unsynced_message_and_it_is_counted() {
        let mailbox = mailbox(2, 1_000);
        assert_eq!([1, 2, 3].map(|n| mailbox.put(&payload(&n.to_string()))), [0, 0, 1]);
        assert_eq!(mailbox.take(), Some(payload("2")));
        assert_eq!(mailbox.take(), Some(payload("3")));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn unsynced_messages_are_bounded_in_bytes_too() {
        let mailbox = mailbox(100, 40);
        let dropped: u64 = (0..10).map(|_| mailbox.put(&payload("\"0123456789\""))).sum();
        assert_eq!(dropped, 9);
        assert!(mailbox.take().is_some() && mailbox.take().is_none());
        assert_eq!(mailbox.inside.lock().unsynced_bytes, 0);
    }

    #[test]
    fn signals_are_told_once_and_the_first_reason_to_leave_stands() {
        let mailbox = mailbox(1, 100);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(mailbox.poll_signals(&mut cx).is_pending());
        mailbox.log_has_more();
        mailbox.leave(Leave::Shutdown);
        mailbox.leave(Leave::Asked);
        let all = Signals { log: true, unsynced: false, leave: Some(Leave::Shutdown) };
        assert_eq!(mailbox.poll_signals(&mut cx), Poll::Ready(all));
        assert!(mailbox.poll_signals(&mut cx).is_pending());
    }
}
