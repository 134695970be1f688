//! Mirrors the responses of the API. Fields that a newer server adds are ignored.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::message::{
    Seq,
    json_string::{lossy, lossy_option},
};

/// Holds the result of a dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DispatchResult {
    /// Number of recipients, without the excluded users; for `*`: of connections.
    pub recipients: u64,
    /// Number of online recipients.
    pub online: u64,
    /// Number of offline recipients.
    pub offline: u64,
    /// Number of logs to which the message was appended; 0 for an unsynced message, which offline users do not receive.
    #[serde(default)]
    pub stored: u64,
    /// Rejected recipients, with reasons.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// Whether the id was used before. Then this is the first result, and nothing was sent again.
    #[serde(default)]
    pub duplicate: bool,
}

/// Describes a rejected recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejected {
    /// Recipient as in the dispatch, with U+FFFD in place of lone surrogates.
    #[serde(deserialize_with = "lossy")]
    pub user: String,
    /// Reason, for programs.
    pub reason: String,
}

/// Describes a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct User {
    /// User id.
    #[serde(alias = "user")]
    pub id: String,
    /// Whether the user has a session.
    pub online: bool,
    /// Number of connections.
    #[serde(default)]
    pub connections: u64,
    /// Devices, each with a cursor of its own.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Time of the last connect or disconnect, in RFC 3339; `null` for never.
    #[serde(default)]
    pub last_seen: serde_json::Value,
    /// Number of pending messages.
    pub pending: u64,
    /// Bytes of the pending messages.
    #[serde(default)]
    pub pending_bytes: u64,
    /// Sequence of the user's last message; 0 if there was none.
    #[serde(default)]
    pub last_sequence: Seq,
    /// Every device has acknowledged all sequences up to and including this one.
    #[serde(default)]
    pub acknowledged: Seq,
    /// Whether some of the user's stored data is unreadable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// Describes a device of a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Device {
    /// Name that the client gave it.
    pub device: String,
    /// It has acknowledged all sequences up to and including this one.
    #[serde(default)]
    pub acknowledged: Seq,
    /// Number of messages it has not acknowledged.
    pub pending: u64,
    /// Time of the last connect or disconnect, in RFC 3339; `null` for never.
    #[serde(default)]
    pub last_seen: serde_json::Value,
}

/// Holds a page of users.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Users {
    /// Users in the order of their ids.
    pub users: Vec<User>,
    /// Cursor of the next page; `None` after the last.
    pub cursor: Option<String>,
}

/// Holds a page of pending messages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Messages {
    /// Messages in the order of the log.
    pub messages: Vec<PendingMessage>,
}

/// Holds a pending message.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PendingMessage {
    /// Sequence in the user's log.
    #[serde(alias = "seq", alias = "sequence")]
    pub s: Seq,
    /// Opcode: 0, or one of the application.
    pub op: u64,
    /// Data, byte for byte as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<Box<RawValue>>,
    /// Type of the message.
    #[serde(default, deserialize_with = "lossy_option", skip_serializing_if = "Option::is_none")]
    pub t: Option<String>,
}

/// Holds the result of clearing a user's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cleared {
    /// Number of messages that were pending.
    pub cleared: u64,
}

/// Holds the result of disconnecting a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Disconnected {
    /// Number of connections that were open.
    pub disconnected: u64,
}

/// Mirrors an error response.
#[derive(Deserialize)]
pub(super) struct ErrorResponse {
    pub error: Rejection,
}

/// Holds the error of a rejected request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("rejected ({code}): {message}")]
#[non_exhaustive]
pub struct Rejection {
    /// Code for programs.
    pub code: String,
    /// Sentence for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_reader, from_str, from_value, to_value};

    use super::*;

    /// Covers programs that store results in their own logs and caches.
    #[test]
    fn result_is_deserialized_from_text_stream_and_value() {
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
