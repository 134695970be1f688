//! Events that a portal reads.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{dispatcher::DispatchError, message::json_string::lossy_option};

/// What happened to a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It has connected, and nobody knows yet who it is.
    Connection {
        /// Names its connection for as long as the server's process lives.
        connection: String,
    },
    /// It has shown who it is.
    Authentication {
        /// As above.
        connection: String,
        /// Who.
        user: String,
    },
    /// It has said something.
    Message {
        /// As above.
        connection: String,
        /// Who it is, if that is known.
        user: Option<String>,
        /// What it said.
        message: Message,
    },
    /// It is gone.
    Disconnection {
        /// As above.
        connection: String,
        /// Who it was, if that was known.
        user: Option<String>,
    },
    /// Events that this portal should have had, and that will not come: it was too slow, or away for too long.
    Missed {
        /// How many, if that is known.
        count: Option<u64>,
    },
}

/// A message from a client.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// 0, or above those of the protocol (23 and up).
    pub op: u64,
    /// The type, by which applications tell messages apart.
    #[serde(rename = "t", default, deserialize_with = "lossy_option")]
    pub kind: Option<String>,
    /// The data: JSON text; `None` where there was none.
    #[serde(rename = "d", default)]
    pub data: Option<Box<RawValue>>,
}

impl Message {
    /// The type, or the empty text: for `match`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// The data as a type of yours. What a client says is whatever it likes to say: expect the error.
    ///
    /// # Errors
    /// When it has another form.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.as_deref().map_or("null", RawValue::get))
    }
}

/// What is handed to the program: an event and its id, or why there are no more.
pub(super) type Handed = Result<(Event, Option<String>), DispatchError>;
