//! The answers of the API. What a newer server adds is passed over.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::message::{
    Seq,
    json_string::{lossy, lossy_option},
};

/// What became of a dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DispatchResult {
    /// Users it was for, without those excluded; for everyone: connections.
    pub recipients: u64,
    /// Those of them who are here.
    pub online: u64,
    /// Those who are not.
    pub offline: u64,
    /// Logs it was appended to. 0 with sync off, for unsynced messages and for everyone: what was for those who are offline
    /// was dropped then.
    #[serde(default)]
    pub stored: u64,
    /// Those for whom it was not taken, and why.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// The same dispatch had been taken before, and was not taken again.
    #[serde(default)]
    pub duplicate: bool,
}

/// A recipient for whom a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejected {
    /// Who, as the dispatch says; with U+FFFD in place of each half of a surrogate pair.
    #[serde(deserialize_with = "lossy")]
    pub user: String,
    /// Why, as one word for programs.
    pub reason: String,
}

/// What is known of a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct User {
    /// Who.
    #[serde(alias = "user")]
    pub id: String,
    /// Whether there is a connection.
    pub online: bool,
    /// How many.
    #[serde(default)]
    pub connections: u64,
    /// Devices with a place in the log of their own.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// When the user last came or went, as the server writes times; `null` for never.
    #[serde(default)]
    pub last_seen: serde_json::Value,
    /// Messages not received yet.
    pub pending: u64,
    /// Bytes of those messages.
    #[serde(default)]
    pub pending_bytes: u64,
    /// Sequence of the user's last message; 0 if there was none.
    #[serde(default)]
    pub last_sequence: Seq,
    /// Some of what is stored of the user cannot be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// One of a user's devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Device {
    /// As its client names it.
    pub device: String,
    /// Messages it has not received yet.
    pub pending: u64,
    /// When it last came or went, as the server writes times; `null` for never.
    #[serde(default)]
    pub last_seen: serde_json::Value,
}

/// A page of users.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Users {
    /// In the order of their ids.
    pub users: Vec<User>,
    /// Where the next page begins; `None` after the last.
    pub cursor: Option<String>,
}

/// A page of what waits for a user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Messages {
    /// In order.
    pub messages: Vec<PendingMessage>,
}

/// A message that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PendingMessage {
    /// Its sequence in the user's log.
    #[serde(alias = "seq", alias = "sequence")]
    pub s: Seq,
    /// 0, or the application's own.
    pub op: u64,
    /// The data, to the letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<Box<RawValue>>,
    /// The type.
    #[serde(default, deserialize_with = "lossy_option", skip_serializing_if = "Option::is_none")]
    pub t: Option<String>,
}

/// What a clearing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cleared {
    /// Messages that waited until then.
    pub cleared: u64,
}

/// An answer that is no.
#[derive(Deserialize)]
pub(super) struct Refused {
    pub error: Refusal,
}

/// Why the server did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("refused ({code}): {message}")]
#[non_exhaustive]
pub struct Refusal {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_reader, from_str, from_value, to_value};

    use super::*;

    /// Programs keep answers in logs and caches of their own.
    #[test]
    fn answer_is_read_from_text_streams_and_values_alike() {
        let text = r#"{"recipients":1,"online":0,"offline":1,"rejected":[{"user":"a\n","reason":"invalid"}]}"#;
        let result: DispatchResult = from_str(text).unwrap();
        assert_eq!(result.rejected[0].user, "a\n");
        assert_eq!(from_reader::<_, DispatchResult>(text.as_bytes()).unwrap(), result);
        assert_eq!(from_value::<DispatchResult>(to_value(&result).unwrap()).unwrap(), result);
        let text = r#"{"s":1,"op":0,"t":"T\n"}"#;
        let types = [from_str::<PendingMessage>(text), from_reader(text.as_bytes())];
        let types = types.map(|message| message.unwrap().t.unwrap());
        assert_eq!(types, ["T\n", "T\n"]);
        let value: Value = from_str(text).unwrap();
        assert_eq!(from_value::<PendingMessage>(value).unwrap().t.as_deref(), Some("T\n"));
    }
}
