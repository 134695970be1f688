//! Who has subscribed to what.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::{
    portal_registry::Number,
    subscriber_queue::{self, Subscriber},
};

/// Channels of one connection; one more closes it. Stock has two at most.
pub(super) const CHANNELS_MAX: usize = 64;

/// Longest name of a channel, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Channels(RwLock<HashMap<Bytes, Vec<Arc<Subscriber>>, RandomState>>);

impl Channels {
    pub(super) fn subscribe(&self, channel: Bytes, subscriber: &Arc<Subscriber>) {
        // A copy: what it is cut from is as large as what was read with it.
        let channel = Bytes::copy_from_slice(&channel);
        self.0.write().entry(channel).or_default().push(subscriber.clone());
    }

    pub(super) fn unsubscribe(&self, channel: &[u8], number: Number) {
        let mut channels = self.0.write();
        if let Some(subscribers) = channels.get_mut(channel) {
            subscribers.retain(|one| one.number != number);
            if subscribers.is_empty() {
                channels.remove(channel);
            }
        }
    }

    /// Those who have subscribed to a channel.
    pub(super) fn subscribers(&self, channel: &[u8]) -> Vec<Arc<Subscriber>> {
        self.0.read().get(channel).cloned().unwrap_or_default()
    }

    /// Tells everybody on a channel; returns how many that are.
    pub(super) fn publish(&self, channel: &[u8], text: &[u8]) -> usize {
        let channels = self.0.read();
        let Some(subscribers) = channels.get(channel) else { return 0 };
        let message = subscriber_queue::message(channel, text);
        subscribers.iter().for_each(|one| _ = one.put(message.clone(), None));
        subscribers.len()
    }
}
