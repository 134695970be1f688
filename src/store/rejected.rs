//! Defines rejected recipients and the reasons of rejections.

use crate::message::{JsonString, json_string::truncate};

/// Describes a rejected recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Recipient as in the request, not always a user id. JSON with [`RejectionReason::InvalidUnicode`].
    pub user: Box<str>,
    /// Reason of the rejection.
    pub reason: RejectionReason,
}

/// Length at which a rejected recipient is truncated, in bytes. A longer string is never a valid user id.
pub const REJECTED_BYTES_MAX: usize = 1024;

impl Rejected {
    /// Copies as much of `user` as fits [`REJECTED_BYTES_MAX`].
    #[must_use]
    pub fn new(user: &str, reason: RejectionReason) -> Self {
        let end = (0..=user.len().min(REJECTED_BYTES_MAX)).rev().find(|at| user.is_char_boundary(*at));
        Self { user: user[..end.unwrap_or(0)].into(), reason }
    }

    /// Rejects an invalid user id.
    #[must_use]
    pub fn invalid(id: &JsonString<'_>) -> Self {
        match id {
            JsonString::Text(text) => Self::new(text, RejectionReason::Invalid),
            JsonString::Raw(json) => {
                Self { user: truncate(json, REJECTED_BYTES_MAX).into(), reason: RejectionReason::InvalidUnicode }
            }
        }
    }

    /// Appends the recipient as JSON.
    pub fn write_user(&self, out: &mut Vec<u8>) {
        match self.reason {
            RejectionReason::InvalidUnicode => out.extend_from_slice(self.user.as_bytes()),
            _ => JsonString::from(&*self.user).write(out),
        }
    }
}

/// States why a recipient was rejected. Numbers are part of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectionReason {
    /// The recipient is not a valid user id.
    Invalid = 0,
    /// The user's quota is exhausted: pending messages or bytes, see [`Limits`](super::Limits).
    Quota = 1,
    /// The user's stored data is unreadable.
    Damaged = 2,
    /// The recipient is not a valid user id, because it has an lone surrogate.
    InvalidUnicode = 3,
}

impl RejectionReason {
    /// Returns the name of the reason, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid | Self::InvalidUnicode => "invalid",
            Self::Quota => "quota",
            Self::Damaged => "damaged",
        }
    }

    pub(crate) fn from_stored(number: u8) -> Option<Self> {
        [Self::Invalid, Self::Quota, Self::Damaged, Self::InvalidUnicode]
            .into_iter()
            .find(|reason| *reason as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_recipient_is_reported_as_sent_up_to_limit() {
        let written = |rejected: &Rejected| {
            let mut out = Vec::new();
            rejected.write_user(&mut out);
            (String::from_utf8(out).unwrap(), rejected.reason.as_str())
        };
        let invalid = |json: &str| written(&Rejected::invalid(&serde_json::from_str(json).unwrap()));
        assert_eq!(invalid(r#""b\u0000""#), (r#""b\u0000""#.into(), "invalid"));
        assert_eq!(invalid(r#""bob\ud83d""#), (r#""bob\ud83d""#.into(), "invalid"));
        let (long, _) = invalid(&format!(r#""{}\ud83d""#, "x".repeat(REJECTED_BYTES_MAX)));
        assert_eq!(long, format!("\"{}\"", "x".repeat(REJECTED_BYTES_MAX - 2)));
        assert_eq!(written(&Rejected::new(r#""\ud83d""#, RejectionReason::Quota)).0, r#""\"\\ud83d\"""#);
        for reason in [
            RejectionReason::Invalid,
            RejectionReason::Quota,
            RejectionReason::Damaged,
            RejectionReason::InvalidUnicode,
        ] {
            assert_eq!(RejectionReason::from_stored(reason as u8), Some(reason));
        }
    }
}
