//! Codec of broadcasts between servers: a line of JSON, then the message exactly as encoded.

use serde::{Deserialize, Serialize};

use crate::{
    cluster::Broadcast,
    message::{EVERYONE, Payload, Recipients, UserId},
};

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Name of the sending server.
    from: String,
    recipients: Vec<String>,
    #[serde(default)]
    excluding: Vec<String>,
    /// Disconnects the recipients. No message follows.
    #[serde(default)]
    disconnect: bool,
    /// Text for the close frames of a disconnect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn ids(users: &[UserId]) -> Vec<String> {
    users.iter().map(ToString::to_string).collect()
}

/// Parses user ids read from Redis. Skips invalid ones.
pub(super) fn users(names: &[String]) -> Vec<UserId> {
    names.iter().filter_map(|name| UserId::new(name).ok()).collect()
}

/// Encodes a broadcast.
pub(super) fn encode(from: &str, broadcast: &Broadcast) -> Vec<u8> {
    let (recipients, excluding, payload, reason) = match broadcast {
        Broadcast::Message { payload, recipients, excluding } => (recipients, excluding, Some(payload), None),
        Broadcast::Disconnect { recipients, excluding, reason } => (recipients, excluding, None, reason.as_deref()),
    };
    let names = match recipients {
        Recipients::Everyone => vec![EVERYONE.to_owned()],
        Recipients::Users(users) => ids(users),
    };
    let head = Head {
        from: from.to_owned(),
        recipients: names,
        excluding: ids(excluding),
        disconnect: payload.is_none(),
        reason: reason.map(str::to_owned),
    };
    // Strings and lists of strings can always be encoded.
    let mut text = serde_json::to_vec(&head).expect("a head is JSON");
    text.push(b'\n');
    if let Some(payload) = payload {
        text.extend_from_slice(payload.as_bytes());
    }
    text
}

/// Decodes a broadcast. `None` if it is malformed or from `own`.
pub(super) fn decode(text: &[u8], own: &str) -> Option<Broadcast> {
    let at = text.iter().position(|byte| *byte == b'\n')?;
    let Head { from, recipients, excluding, disconnect, reason } = serde_json::from_slice(&text[..at]).ok()?;
    if from == own {
        return None;
    }
    let recipients = match &recipients[..] {
        [name] if name == EVERYONE => Recipients::Everyone,
        names => Recipients::Users(users(names)),
    };
    let excluding = users(&excluding);
    if disconnect {
        return Some(Broadcast::Disconnect { recipients, excluding, reason: reason.map(Into::into) });
    }
    let payload = Payload::from_stored(bytes::Bytes::copy_from_slice(&text[at + 1..]));
    Some(Broadcast::Message { payload, recipients, excluding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_decodes_as_encoded_except_at_its_sender() {
        let user = |id| UserId::new(id).unwrap();
        let payload = Payload::encode(0, Some("{\"a\":\n1}"), Some("T")).unwrap();
        for broadcast in [
            Broadcast::Message {
                payload: payload.clone(),
                recipients: Recipients::Everyone,
                excluding: vec![user("a")],
            },
            Broadcast::Message {
                payload,
                recipients: Recipients::Users(vec![user("a b"), user("\"")]),
                excluding: vec![],
            },
            Broadcast::Disconnect { recipients: Recipients::Users(vec![user("*a")]), excluding: vec![], reason: None },
            Broadcast::Disconnect {
                recipients: Recipients::Users(vec![user("a")]),
                excluding: vec![],
                reason: Some("maintenance, \"back\" soon".into()),
            },
        ] {
            let text = encode("1-a", &broadcast);
            assert_eq!(decode(&text, "1-b"), Some(broadcast));
            assert_eq!(decode(&text, "1-a"), None);
        }
        assert_eq!(decode(b"{\n", "1-a"), None);
    }
}
