//! Defines the ids that backends and clients choose: short texts, validated once, cheap to clone.

use std::{fmt, sync::Arc};

/// Reason why a text is not a valid id of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must have 1 to {characters_max} characters and no control characters")]
pub struct IdError {
    what: &'static str,
    characters_max: usize,
}

fn validate(id: &str, what: &'static str, characters_max: usize) -> Result<Arc<str>, IdError> {
    let is_bounded = !id.is_empty() && id.chars().nth(characters_max).is_none();
    if is_bounded && !id.chars().any(char::is_control) { Ok(id.into()) } else { Err(IdError { what, characters_max }) }
}

macro_rules! ids {
    ($($(#[doc = $help:literal])+ $name:ident: $what:literal, $max:ident = $characters:literal;)+) => {$(
        #[doc = concat!("Longest ", $what, ", in characters.")]
        pub const $max: usize = $characters;

        $(#[doc = $help])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Validates and copies `id`.
            ///
            /// # Errors
            /// If it is empty, too long, or has a control character.
            pub fn new(id: &str) -> Result<Self, IdError> {
                validate(id, concat!("a ", $what), $max).map(Self)
            }

            /// Returns the id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )+};
}

ids! {
    /// Name of one of a user's devices, chosen by the client. Each device has its own cursor.
    DeviceId: "device", DEVICE_CHARACTERS_MAX = 64;
    /// Idempotency id of a dispatch, chosen by the backend. A retry with the same id returns the first result.
    DispatchId: "dispatch id", DISPATCH_ID_CHARACTERS_MAX = 128;
    /// Collapse key of a message: a newer message with the same key replaces a pending one.
    CollapseKey: "collapse key", COLLAPSE_KEY_CHARACTERS_MAX = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_bounded_in_characters_and_has_no_control_characters() {
        assert!(DeviceId::new(&"é".repeat(64)).is_ok());
        for name in ["", &"x".repeat(65), "a\0", "a\nb"] {
            let error = DeviceId::new(name).unwrap_err().to_string();
            assert_eq!(error, "a device must have 1 to 64 characters and no control characters");
        }
        assert_eq!(DispatchId::new("order-7").unwrap().as_str(), "order-7");
    }
}
