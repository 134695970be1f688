//! The names that backends and clients give to things: short texts, checked once and cheap to clone.

use std::{fmt, sync::Arc};

/// Why a text is no name of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} has 1 to {characters_max} characters and no control characters")]
pub struct NameError {
    what: &'static str,
    characters_max: usize,
}

fn check(name: &str, what: &'static str, characters_max: usize) -> Result<Arc<str>, NameError> {
    let fits = !name.is_empty() && name.chars().nth(characters_max).is_none();
    if fits && !name.chars().any(char::is_control) { Ok(name.into()) } else { Err(NameError { what, characters_max }) }
}

macro_rules! names {
    ($($(#[doc = $help:literal])+ $name:ident: $what:literal, $max:ident = $characters:literal;)+) => {$(
        #[doc = concat!("Longest ", $what, ", in characters.")]
        pub const $max: usize = $characters;

        $(#[doc = $help])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `name` and takes a copy of it.
            ///
            /// # Errors
            /// When it is empty, too long, or has a control character.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check(name, concat!("a ", $what), $max).map(Self)
            }

            /// The name as text.
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

names! {
    /// One of a user's devices, as the client names it: what it has received is counted apart from the others.
    DeviceId: "device", DEVICE_CHARACTERS_MAX = 64;
    /// What a backend calls a dispatch, so that saying it again is not doing it again.
    DispatchId: "dispatch id", DISPATCH_ID_CHARACTERS_MAX = 128;
    /// What a message is about: a newer one of the same key takes the place of one that is still pending.
    CollapseKey: "collapse key", COLLAPSE_KEY_CHARACTERS_MAX = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_counted_in_characters_and_has_none_that_are_not_seen() {
        assert!(DeviceId::new(&"é".repeat(64)).is_ok());
        for name in ["", &"x".repeat(65), "a\0", "a\nb"] {
            let told = DeviceId::new(name).unwrap_err().to_string();
            assert_eq!(told, "a device has 1 to 64 characters and no control characters");
        }
        assert_eq!(DispatchId::new("order-7").unwrap().as_str(), "order-7");
    }
}
