//! What a store knows of a user.

use std::time::SystemTime;

use super::{Received, StoreError};
use crate::message::{DeviceId, Seq, UserId};

/// What the store knows of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserState {
    /// Whether anything was ever written down about this user.
    pub known: bool,
    /// Last sequence handed out; the next message gets `head + 1`.
    pub head: Seq,
    /// What the clients without a device have received, or, if there are none, what all devices have.
    pub received: Received,
    /// Entries that somebody has not received yet.
    pub pending: u64,
    /// Bytes of those entries. An estimate while entries are received out of order; see [`Store::pending_bytes`].
    ///
    /// [`Store::pending_bytes`]: super::Store::pending_bytes
    pub pending_bytes: u64,
    /// A read has found entries of this user that cannot be read. Others may be unreadable that no read has met yet.
    pub damaged: bool,
    /// When the user last connected or disconnected, as far as that was written down.
    pub seen: Option<SystemTime>,
    /// His devices, those that came first first.
    pub devices: Vec<DeviceState>,
}

/// What the store knows of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Its name.
    pub device: DeviceId,
    /// Entries that it has not received yet.
    pub pending: u64,
    /// When it last connected or disconnected.
    pub seen: Option<SystemTime>,
}

/// Where a session begins: what its cursor is when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// What it has received.
    pub received: Received,
    /// The head of the log.
    pub head: Seq,
}

/// One of those whom a store knows: his state, or why what is stored of him cannot be read, which concerns him alone.
pub type KnownUser = (UserId, Result<UserState, StoreError>);
