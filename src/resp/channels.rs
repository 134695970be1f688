//! Maps channels to their subscribers.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::{
    portal_registry::ConnectionNumber,
    subscriber_queue::{self, Subscriber},
};

/// Channels of one connection. One more closes it. The original needs two.
pub(super) const CHANNELS_MAX: usize = 64;

/// Length limit of a channel's name, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// Channels, each with its subscribers.
#[derive(Debug, Default)]
pub(super) struct Channels(RwLock<HashMap<Bytes, Vec<Arc<Subscriber>>, RandomState>>);

impl Channels {
    pub(super) fn subscribe(&self, channel: Bytes, subscriber: &Arc<Subscriber>) {
        // Copied, because `channel` is a slice of a whole read buffer and would keep it alive.
        let channel = Bytes::copy_from_slice(&channel);
        self.0.write().entry(channel).or_default().push(subscriber.clone());
    }

    pub(super) fn unsubscribe(&self, channel: &[u8], number: ConnectionNumber) {
        let mut channels = self.0.write();
        if let Some(subscribers) = channels.get_mut(channel) {
            subscribers.retain(|subscriber| subscriber.number != number);
            if subscribers.is_empty() {
                channels.remove(channel);
            }
        }
    }

    /// Returns the subscribers of a channel.
    pub(super) fn subscribers(&self, channel: &[u8]) -> Vec<Arc<Subscriber>> {
        self.0.read().get(channel).cloned().unwrap_or_default()
    }

    /// Sends a message to all subscribers of a channel, and returns their number.
    pub(super) fn publish(&self, channel: &[u8], text: &[u8]) -> usize {
        let channels = self.0.read();
        let Some(subscribers) = channels.get(channel) else { return 0 };
        let message = subscriber_queue::message(channel, text);
        subscribers.iter().for_each(|subscriber| _ = subscriber.push(message.clone(), None));
        subscribers.len()
    }
}
