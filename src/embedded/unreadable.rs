//! Defines the errors of stored values that cannot be read, worded for operators.

use std::fmt;

use bincode::error::DecodeError;
use bytes::Bytes;

use crate::store::StoreError;

/// First byte of a placeholder. No stored value begins with it.
const PLACEHOLDER: u8 = 0xFF;

/// States why a stored value cannot be read: a clause without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(String);

impl Unreadable {
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// Encodes the reason as a placeholder for the value.
    pub fn to_value(&self) -> Bytes {
        let mut value = vec![PLACEHOLDER];
        value.extend_from_slice(self.0.as_bytes());
        value.into()
    }

    /// Decodes the reason, if `value` is a placeholder.
    pub fn from_value(value: &[u8]) -> Option<Self> {
        match value {
            [] => Some(Self::new("a checksum does not match")),
            [PLACEHOLDER, why @ ..] => Some(Self(String::from_utf8_lossy(why).into_owned())),
            _ => None,
        }
    }
}

/// Creates the error of damaged data. `what` is a clause without a full stop; the remedy is appended.
pub fn damaged(what: impl fmt::Display) -> StoreError {
    StoreError::Damaged(format!("{what}. Save what is left with `mesa inspect --salvage`, or restore a backup").into())
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

impl From<DecodeError> for Unreadable {
    fn from(error: DecodeError) -> Self {
        Self::new(match error {
            DecodeError::UnexpectedEnd { .. } => "it ends early",
            DecodeError::UnexpectedVariant { .. } => "its kind is unknown to this version",
            DecodeError::LimitExceeded => "its stated length exceeds the limit",
            _ => "its content is not valid",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{
        tables::schema::StoredLog,
        value_log::block::{Block, Body},
    };

    #[test]
    fn placeholder_of_unreadable_value_decodes_to_its_reason_only() {
        let why = Unreadable::new("its file is missing");
        assert_eq!(Block::decode(&why.to_value()).unwrap_err(), why);
        assert_eq!(Unreadable::from_value(&why.to_value()), Some(why));
        let block = Block::V1 { namespace: 1, user: "a", entries: vec![(1, 0, Body::Inline(b"x"))] }.encode();
        assert_eq!(Unreadable::from_value(&block), None);
    }

    #[test]
    fn decode_error_text_has_no_decoder_terms() {
        let row = StoredLog { head: 1, ..StoredLog::default() }.encode();
        for length in 0..row.len() {
            let text = StoredLog::decode(&row[..length]).unwrap_err().to_string();
            assert!(!text.contains(['{', '(', ':']), "{text}");
        }
        assert_eq!(StoredLog::decode(&[9]).unwrap_err().to_string(), "its kind is unknown to this version");
    }
}
