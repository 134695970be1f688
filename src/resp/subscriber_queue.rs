//! Queues output for a subscribed connection, up to a bound in bytes.
//!
//! A subscriber that exceeds the bound is disconnected, as in Redis. It gets no error, and reconnects by itself.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{encode, portal_registry::ConnectionNumber};
use crate::hub::portals::ClientEvent;

/// Bytes of one write, approximately.
const WRITE_BYTES: usize = 64 << 10;

/// The output queue of one connection.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub number: ConnectionNumber,
    pub address: IpAddr,
    bytes_max: usize,
    queue: Mutex<Queue>,
    /// Notified when a message was queued, or the bound exceeded.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<QueuedMessage>,
    bytes: usize,
    /// More than half of the bound was queued, and [`Subscriber::take`] has not reported space since.
    crowded: bool,
    /// The queue exceeded its bound, or the connection has ended. No further message is queued.
    closed: bool,
}

#[derive(Debug)]
struct QueuedMessage {
    bytes: Bytes,
    /// Event that only this subscriber handles. If it is not written, another subscriber must get it.
    event: Option<Arc<ClientEvent>>,
}

/// Tells whether a message was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushResult {
    Queued,
    /// It was queued, and more than half of the bound is in use: prefer other subscribers.
    Crowded,
    /// It exceeds the bound. The subscriber is disconnected.
    Overflow,
    /// The queue is closed.
    Closed,
}

impl Subscriber {
    pub(super) fn new(number: ConnectionNumber, address: IpAddr, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { number, address, bytes_max, queue: Mutex::default(), changed: Notify::new() })
    }

    /// Queues a message. `event` is the event in it that only this subscriber handles.
    pub(super) fn push(&self, bytes: Bytes, event: Option<Arc<ClientEvent>>) -> PushResult {
        let result = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return PushResult::Closed;
            }
            queue.bytes += bytes.len();
            queue.messages.push_back(QueuedMessage { bytes, event });
            if queue.bytes > self.bytes_max {
                queue.closed = true;
                PushResult::Overflow
            } else if queue.bytes > self.bytes_max / 2 {
                queue.crowded = true;
                PushResult::Crowded
            } else {
                PushResult::Queued
            }
        };
        self.changed.notify_one();
        result
    }

    /// Moves the messages of one write to `out`. Returns true if a crowded queue has space again.
    pub(super) fn take(&self, out: &mut BytesMut) -> bool {
        let mut queue = self.queue.lock();
        while out.len() < WRITE_BYTES && !queue.closed {
            let Some(message) = queue.messages.pop_front() else { break };
            queue.bytes -= message.bytes.len();
            out.put_slice(&message.bytes);
        }
        let has_space_again = queue.crowded && queue.bytes <= self.bytes_max / 2;
        queue.crowded &= !has_space_again;
        has_space_again
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().messages.is_empty()
    }

    /// Tells whether the bound was exceeded, or the queue closed.
    pub(super) fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    /// Closes the queue, and returns the unwritten events that only this subscriber would have handled.
    pub(super) fn close(&self) -> Vec<Arc<ClientEvent>> {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.bytes = 0;
        std::mem::take(&mut queue.messages).into_iter().filter_map(|message| message.event).collect()
    }
}

/// Encodes a message on a channel for subscribers.
pub(super) fn message(channel: &[u8], text: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(channel.len() + text.len() + 48);
    encode::array(&mut out, 3);
    encode::bulk(&mut out, b"message");
    encode::bulk(&mut out, channel);
    encode::bulk(&mut out, text);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::portals::{ClientEventKind, EventOrigin};

    fn event() -> Arc<ClientEvent> {
        Arc::new(ClientEvent {
            connection: 1,
            origin: EventOrigin::Local,
            user: None,
            kind: ClientEventKind::Connection,
        })
    }

    #[test]
    fn subscriber_above_bound_is_closed_and_returns_its_events() {
        let subscriber = Subscriber::new(1, [127, 0, 0, 1].into(), 100);
        let message = || Bytes::from(vec![b'x'; 30]);
        assert_eq!(subscriber.push(message(), Some(event())), PushResult::Queued);
        assert_eq!(subscriber.push(message(), None), PushResult::Crowded);
        let mut out = BytesMut::new();
        assert!(subscriber.take(&mut out));
        assert_eq!((out.len(), subscriber.is_empty()), (60, true));
        for push in
            [PushResult::Queued, PushResult::Crowded, PushResult::Crowded, PushResult::Overflow, PushResult::Closed]
        {
            assert_eq!(subscriber.push(message(), Some(event())), push);
        }
        assert!(subscriber.is_closed());
        assert_eq!(subscriber.close().len(), 4);
        assert_eq!(subscriber.close().len(), 0);
    }

    #[test]
    fn channel_message_is_encoded_like_redis() {
        assert_eq!(message(b"ws", b"{}"), "*3\r\n$7\r\nmessage\r\n$2\r\nws\r\n$2\r\n{}\r\n");
    }
}
