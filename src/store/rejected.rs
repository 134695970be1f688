//! Recipients for whom a message was not taken, and why.

use crate::message::{JsonString, json_string::truncate};

/// A recipient for whom a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Who, as it was said: not always a user id. JSON with [`Reason::Cut`].
    pub user: Box<str>,
    /// Why.
    pub reason: Reason,
}

/// Longest name of a rejected user, in bytes: of what is longer, and so no user id, the rest is left out.
pub const REJECTED_BYTES_MAX: usize = 1024;

impl Rejected {
    /// Takes a copy of as much of `user` as is told.
    #[must_use]
    pub fn new(user: &str, reason: Reason) -> Self {
        let end = (0..=user.len().min(REJECTED_BYTES_MAX)).rev().find(|at| user.is_char_boundary(*at));
        Self { user: user[..end.unwrap_or(0)].into(), reason }
    }

    /// Rejects what is no user id.
    #[must_use]
    pub fn invalid(id: &JsonString<'_>) -> Self {
        match id {
            JsonString::Text(text) => Self::new(text, Reason::Invalid),
            JsonString::Raw(json) => Self { user: truncate(json, REJECTED_BYTES_MAX).into(), reason: Reason::Cut },
        }
    }

    /// Appends who it is as JSON.
    pub fn write_user(&self, out: &mut Vec<u8>) {
        match self.reason {
            Reason::Cut => out.extend_from_slice(self.user.as_bytes()),
            _ => JsonString::from(&*self.user).write(out),
        }
    }
}

/// Why a message was not taken for a recipient. Numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It is not a user id.
    Invalid = 0,
    /// The user has as many pending messages, or bytes of them, as [`Limits`](super::Limits) allows.
    Quota = 1,
    /// What is stored of this user cannot be read.
    Damaged = 2,
    /// It is not a user id, for it has half of a surrogate pair.
    Cut = 3,
}

impl Reason {
    /// One word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid | Self::Cut => "invalid",
            Self::Quota => "quota",
            Self::Damaged => "damaged",
        }
    }

    pub(crate) fn from_stored(number: u8) -> Option<Self> {
        [Self::Invalid, Self::Quota, Self::Damaged, Self::Cut].into_iter().find(|reason| *reason as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_id_is_told_as_it_came_as_far_as_it_fits() {
        let told = |rejected: &Rejected| {
            let mut out = Vec::new();
            rejected.write_user(&mut out);
            (String::from_utf8(out).unwrap(), rejected.reason.as_str())
        };
        let invalid = |json: &str| told(&Rejected::invalid(&serde_json::from_str(json).unwrap()));
        assert_eq!(invalid(r#""b\u0000""#), (r#""b\u0000""#.into(), "invalid"));
        assert_eq!(invalid(r#""bob\ud83d""#), (r#""bob\ud83d""#.into(), "invalid"));
        let (long, _) = invalid(&format!(r#""{}\ud83d""#, "x".repeat(REJECTED_BYTES_MAX)));
        assert_eq!(long, format!("\"{}\"", "x".repeat(REJECTED_BYTES_MAX - 2)));
        assert_eq!(told(&Rejected::new(r#""\ud83d""#, Reason::Quota)).0, r#""\"\\ud83d\"""#);
        for reason in [Reason::Invalid, Reason::Quota, Reason::Damaged, Reason::Cut] {
            assert_eq!(Reason::from_stored(reason as u8), Some(reason));
        }
    }
}
