//! Defines the queryable state of a user.

use std::time::SystemTime;

use super::{AckSet, Gap, StoreError};
use crate::message::{DeviceId, Seq, UserId};

/// Describes the state of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserState {
    /// The store has data of this user.
    pub known: bool,
    /// Last assigned sequence; the next message gets `head + 1`.
    pub head: Seq,
    /// Sequences that every cursor has acknowledged.
    pub acknowledged: AckSet,
    /// Number of pending entries.
    pub pending: u64,
    /// Bytes of the pending entries. An estimate while entries are acknowledged out of order; see
    /// [`Store::pending_bytes`].
    ///
    /// [`Store::pending_bytes`]: super::Store::pending_bytes
    pub pending_bytes: u64,
    /// A read has found unreadable entries of this user. There may be further ones that no read has reached.
    pub damaged: bool,
    /// Time of the last recorded connect or disconnect.
    pub seen: Option<SystemTime>,
    /// Devices, the oldest first.
    pub devices: Vec<DeviceState>,
    /// Missing ranges with a known reason, in order; at most [`GAPS_MAX`](super::GAPS_MAX).
    pub gaps: Vec<Gap>,
}

/// Describes the state of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Name of the device.
    pub device: DeviceId,
    /// All sequences up to and including this one are acknowledged by the device.
    pub acknowledged: Seq,
    /// Number of entries it has not acknowledged.
    pub pending: u64,
    /// Time of its last connect or disconnect.
    pub seen: Option<SystemTime>,
}

/// Holds the cursor of an attached session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Acknowledged sequences.
    pub acknowledged: AckSet,
    /// Head of the log.
    pub head: Seq,
}

/// Holds a known user with its state, or the error of this user's unreadable data.
pub type KnownUser = (UserId, Result<UserState, StoreError>);
