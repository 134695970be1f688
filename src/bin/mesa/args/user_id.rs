//! Parses user ids of the command line.

use mesa::message::UserId;

use crate::error::Failure;

/// Parses a user id. An invalid one is a usage error.
pub fn user_id(given: &str) -> Result<UserId, Failure> {
    UserId::new(given).map_err(|error| Failure::usage(format!("\"{}\": {error}", given.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_user_id_is_a_usage_error() {
        assert!(matches!(user_id(""), Err(Failure::Usage(_))));
        assert_eq!(user_id("alice").unwrap().as_str(), "alice");
    }
}
