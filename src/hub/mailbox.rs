//! Mailbox of a connection: signals from the hub, and unsynced messages, which bypass the log.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::message::Payload;

/// Size limit of the text in a close frame, in bytes (RFC 6455).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Bits of `Mailbox::signals`.
const LOG: u8 = 1;
const UNSYNCED: u8 = 2;
const CLOSE: u8 = 4;

/// Why the server closes a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A backend requested it (`DISCONNECT_CLIENT`), perhaps with a text for the close frame.
    Requested(Option<Arc<str>>),
    /// The embedding program requested it, with this close code.
    WithCode(u16),
    /// The server is shutting down.
    Shutdown,
    /// The store has failed, so no guarantee can be given any more.
    StoreFailed,
}

/// Signals since the last poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The user's log may have more entries.
    pub log: bool,
    /// The mailbox has unsynced messages.
    pub unsynced: bool,
    /// The connection is to be closed.
    pub close: Option<CloseReason>,
}

/// Bounds of a mailbox. At either bound the oldest message is dropped and counted.
///
/// Unsynced messages are those whose loss is acceptable, and memory must not depend on how slowly a client reads.
#[derive(Clone, Copy, Debug)]
pub struct MailboxBounds {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

/// Mailbox of one connection. The hub adds messages without waiting; the connection's task takes them.
#[derive(Debug)]
pub struct Mailbox {
    bounds: MailboxBounds,
    signals: AtomicU8,
    waker: AtomicWaker,
    authenticated: AtomicBool,
    state: Mutex<MailboxState>,
}

#[derive(Debug, Default)]
struct MailboxState {
    unsynced: VecDeque<Payload>,
    unsynced_bytes: usize,
    close: Option<CloseReason>,
}

impl Mailbox {
    pub(super) fn new(bounds: MailboxBounds) -> Self {
        Self {
            bounds,
            signals: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            authenticated: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn set_authenticated(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
    }

    /// Signals that the user's log has more entries.
    pub(super) fn signal_log(&self) {
        self.signal(LOG);
    }

    /// Requests the connection to close. The first reason counts; returns false for any later one.
    pub(super) fn close(&self, reason: CloseReason) -> bool {
        let is_first = {
            let mut state = self.state.lock();
            let is_first = state.close.is_none();
            state.close.get_or_insert(reason);
            is_first
        };
        self.signal(CLOSE);
        is_first
    }

    /// Adds an unsynced message; returns the number of messages dropped for it.
    pub(super) fn put(&self, payload: &Payload) -> u64 {
        let mut dropped = 0;
        {
            let mut state = self.state.lock();
            state.unsynced_bytes += payload.as_bytes().len();
            state.unsynced.push_back(payload.clone());
            while state.unsynced.len() > self.bounds.messages || state.unsynced_bytes > self.bounds.bytes {
                let Some(oldest) = state.unsynced.pop_front() else { break };
                state.unsynced_bytes -= oldest.as_bytes().len();
                dropped += 1;
            }
        }
        self.signal(UNSYNCED);
        dropped
    }

    /// Takes the oldest unsynced message.
    pub fn take(&self) -> Option<Payload> {
        let mut state = self.state.lock();
        let oldest = state.unsynced.pop_front();
        match &oldest {
            Some(payload) => state.unsynced_bytes -= payload.as_bytes().len(),
            // An idle connection holds no memory for an empty queue.
            None => state.unsynced = VecDeque::new(),
        }
        oldest
    }

    /// Returns the signals since the last call. One task may wait at a time.
    pub fn poll_signals(&self, cx: &mut Context<'_>) -> Poll<Signals> {
        // Registered first: a signal from here on wakes the task, whether or not the swap below finds one.
        self.waker.register(cx.waker());
        let signals = self.signals.swap(0, Ordering::AcqRel);
        if signals == 0 {
            return Poll::Pending;
        }
        let close = if signals & CLOSE == 0 { None } else { self.state.lock().close.clone() };
        Poll::Ready(Signals { log: signals & LOG != 0, unsynced: signals & UNSYNCED != 0, close })
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
    fn mailbox_beyond_its_message_bound_drops_the_oldest_and_counts_it() {
        let mailbox = mailbox(2, 1_000);
        assert_eq!([1, 2, 3].map(|n| mailbox.put(&payload(&n.to_string()))), [0, 0, 1]);
        assert_eq!(mailbox.take(), Some(payload("2")));
        assert_eq!(mailbox.take(), Some(payload("3")));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn mailbox_beyond_its_byte_bound_drops_the_oldest() {
        let mailbox = mailbox(100, 40);
        let dropped: u64 = (0..10).map(|_| mailbox.put(&payload("\"0123456789\""))).sum();
        assert_eq!(dropped, 9);
        assert!(mailbox.take().is_some() && mailbox.take().is_none());
        assert_eq!(mailbox.state.lock().unsynced_bytes, 0);
    }

    #[test]
    fn signals_are_returned_once_and_the_first_close_reason_counts() {
        let mailbox = mailbox(1, 100);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(mailbox.poll_signals(&mut cx).is_pending());
        mailbox.signal_log();
        assert!(mailbox.close(CloseReason::Shutdown));
        assert!(!mailbox.close(CloseReason::Requested(None)), "it is closing already");
        let all = Signals { log: true, unsynced: false, close: Some(CloseReason::Shutdown) };
        assert_eq!(mailbox.poll_signals(&mut cx), Poll::Ready(all));
        assert!(mailbox.poll_signals(&mut cx).is_pending());
    }
}
