//! What waits for a connection that subscribes: pieces to be written, up to a bound. One that lets more pile up is cut, as
//! in Redis: it is told nothing wrong, and comes back by itself.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{encode, portal_registry::Number};
use crate::hub::portals::ClientEvent;

/// Pieces written at once, in bytes, about.
const WRITE_BYTES: usize = 64 << 10;

/// A connection, as those see it who have something to tell it.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub number: Number,
    pub address: IpAddr,
    bytes_max: usize,
    queue: Mutex<Queue>,
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// More than half of what may wait did, and it is not yet written.
    crowded: bool,
    /// It was over the bound, or is gone: it takes nothing more.
    closed: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// An event that was for this one alone: somebody else is to have it if it is not written.
    own: Option<Arc<ClientEvent>>,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Fits,
    /// It fits, and from here on others should be preferred.
    Crowded,
    /// It was taken, and was too much.
    Cut,
    /// Nothing is taken any more.
    Refused,
}

impl Subscriber {
    pub(super) fn new(number: Number, address: IpAddr, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { number, address, bytes_max, queue: Mutex::default(), changed: Notify::new() })
    }

    pub(super) fn put(&self, bytes: Bytes, own: Option<Arc<ClientEvent>>) -> Put {
        let put = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Put::Refused;
            }
            queue.bytes += bytes.len();
            queue.pieces.push_back(Piece { bytes, own });
            if queue.bytes > self.bytes_max {
                queue.closed = true;
                Put::Cut
            } else if queue.bytes > self.bytes_max / 2 {
                queue.crowded = true;
                Put::Crowded
            } else {
                Put::Fits
            }
        };
        self.changed.notify_one();
        put
    }

    /// What is to be written next, as much as is written at once. True if there is room again where there was little.
    pub(super) fn take(&self, out: &mut BytesMut) -> bool {
        let mut queue = self.queue.lock();
        while out.len() < WRITE_BYTES && !queue.closed {
            let Some(piece) = queue.pieces.pop_front() else { break };
            queue.bytes -= piece.bytes.len();
            out.put_slice(&piece.bytes);
        }
        let again = queue.crowded && queue.bytes <= self.bytes_max / 2;
        queue.crowded &= !again;
        again
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().pieces.is_empty()
    }

    /// Whether it let more pile up than may.
    pub(super) fn is_cut(&self) -> bool {
        self.queue.lock().closed
    }

    /// The connection is gone: the events that were for it alone and were not written.
    pub(super) fn close(&self) -> Vec<Arc<ClientEvent>> {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.bytes = 0;
        std::mem::take(&mut queue.pieces).into_iter().filter_map(|piece| piece.own).collect()
    }
}

/// A message on a channel, as a subscriber reads it.
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

    fn told() -> Arc<ClientEvent> {
        Arc::new(ClientEvent {
            connection: 1,
            origin: EventOrigin::Local,
            user: None,
            kind: ClientEventKind::Connection,
        })
    }

    #[test]
    fn one_that_lets_too_much_pile_up_is_cut_and_what_was_its_own_goes_to_others() {
        let subscriber = Subscriber::new(1, [127, 0, 0, 1].into(), 100);
        let piece = || Bytes::from(vec![b'x'; 30]);
        assert_eq!(subscriber.put(piece(), Some(told())), Put::Fits);
        assert_eq!(subscriber.put(piece(), None), Put::Crowded);
        let mut out = BytesMut::new();
        assert!(subscriber.take(&mut out));
        assert_eq!((out.len(), subscriber.is_empty()), (60, true));
        for put in [Put::Fits, Put::Crowded, Put::Crowded, Put::Cut, Put::Refused] {
            assert_eq!(subscriber.put(piece(), Some(told())), put);
        }
        assert!(subscriber.is_cut());
        assert_eq!(subscriber.close().len(), 4);
        assert_eq!(subscriber.close().len(), 0);
    }

    #[test]
    fn a_message_is_as_redis_writes_it() {
        assert_eq!(message(b"ws", b"{}"), "*3\r\n$7\r\nmessage\r\n$2\r\nws\r\n$2\r\n{}\r\n");
    }
}
