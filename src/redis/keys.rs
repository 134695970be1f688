//! Key schema on Redis.
//!
//! Every key has the suffix of the namespace, like the original's keys. Keys of one user share a hash tag, so that they
//! are in one slot of a Redis Cluster. Keys that one script uses for all servers share the tag `{cluster}`.

use crate::compat::keyspace::{self, Name};

/// The keys and channels of one namespace.
#[derive(Clone, Debug)]
pub struct Keys {
    original: keyspace::Keyspace,
    suffix: String,
}

impl Keys {
    /// Builds keys with the suffix of this namespace.
    #[must_use]
    pub fn new(namespace: Option<&str>) -> Self {
        Self {
            original: keyspace::Keyspace::new(namespace),
            suffix: namespace.map(|namespace| format!("_{namespace}")).unwrap_or_default(),
        }
    }

    /// Returns a key or channel of the original.
    #[must_use]
    pub fn original(&self, name: Name) -> String {
        self.original.of(name)
    }

    fn of(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    fn of_user(&self, kind: &str, user: &str) -> String {
        format!("mesa:{kind}:{{{}}}{}", tag(user), self.suffix)
    }

    /// State of a user's log: head, cursors, gaps.
    #[must_use]
    pub fn state(&self, user: &str) -> String {
        self.of_user("state", user)
    }

    /// Stream of a user's entries.
    #[must_use]
    pub fn log(&self, user: &str) -> String {
        self.of_user("log", user)
    }

    /// Sequence that a dispatch with an id has for one user. The id may end in any text, so the suffix precedes it.
    #[must_use]
    pub fn dedup_entry(&self, user: &str, id: &str) -> String {
        format!("mesa:dedup{}:{{{}}}:{id}", self.suffix, tag(user))
    }

    /// Sequence that a message from the original, which several servers receive, has in one user's log.
    #[must_use]
    pub fn delivered_copy(&self, user: &str, id: &str) -> String {
        format!("mesa:delivered{}:{{{}}}:{id}", self.suffix, tag(user))
    }

    /// Result of a dispatch with an id, for retries. Namespaces contain no `/`.
    #[must_use]
    pub fn dispatch_result(&self, id: &str) -> String {
        format!("mesa:result{}/{id}", self.suffix)
    }

    /// Index of all users with a log, in order.
    #[must_use]
    pub fn user_index(&self) -> String {
        self.of("mesa:users")
    }

    /// Index of users by the time of their next expiry.
    #[must_use]
    pub fn expiry_index(&self) -> String {
        self.of("mesa:expiry")
    }

    /// Servers, each with the end of its lease.
    #[must_use]
    pub fn servers(&self) -> String {
        self.of("mesa:{cluster}:servers")
    }

    /// The failover epoch (`membership`).
    #[must_use]
    pub fn epoch(&self) -> String {
        self.of("mesa:{cluster}:epoch")
    }

    /// Online users, in order.
    #[must_use]
    pub fn online(&self) -> String {
        self.of("mesa:{cluster}:online")
    }

    /// Users that our servers have added to the original's `connected_clients`: 0, or when the user went offline, in
    /// ms.
    #[must_use]
    pub fn original_users_added(&self) -> String {
        self.of("mesa:{cluster}:original-users-added")
    }

    /// Dead servers, each with the end of the current reaper's claim.
    #[must_use]
    pub fn dead_servers(&self) -> String {
        self.of("mesa:{cluster}:dead")
    }

    /// Users of one server, each with the number of connections.
    #[must_use]
    pub fn server_users(&self, server: &str) -> String {
        let (prefix, suffix) = self.server_users_affixes();
        format!("{prefix}{server}{suffix}")
    }

    /// Returns the prefix and the suffix of the server's name in [`Keys::server_users`].
    #[must_use]
    pub fn server_users_affixes(&self) -> (String, String) {
        ("mesa:{cluster}:users:".to_owned(), self.suffix.clone())
    }

    /// Number of connections of each server.
    #[must_use]
    pub fn connection_counts(&self) -> String {
        self.of("mesa:{cluster}:connections")
    }

    /// Servers with a portal that receives all events. Also a channel, on which a server announces a change.
    #[must_use]
    pub fn event_subscribers(&self) -> String {
        self.of("mesa:event-subscribers")
    }

    /// Position in a list that was taken from the original's pending messages, and the list. In a Redis Cluster both
    /// are in the slot of [`Keys::original`]`(Name::Undelivered)`.
    #[must_use]
    pub fn taken_list(&self, user: &str) -> (String, String) {
        let hash = self.original(Name::Undelivered);
        (format!("mesa:{{{hash}}}:taken-position:{user}"), format!("mesa:{{{hash}}}:taken:{user}"))
    }

    /// Pending messages of the original that cannot be sent to clients, one per line. In the slot of
    /// [`Keys::taken_list`].
    #[must_use]
    pub fn unsendable(&self, user: &str) -> String {
        format!("mesa:{{{}}}:unsendable:{user}", self.original(Name::Undelivered))
    }

    /// Time at which the last server with a test clock left, in ms. For tests.
    #[must_use]
    pub fn test_clock(&self) -> String {
        self.of("mesa:test-clock")
    }

    /// Channel that names users with new entries.
    #[must_use]
    pub fn append_channel(&self) -> String {
        self.of("mesa:appended")
    }

    /// Channel for unsynced messages and disconnect requests.
    #[must_use]
    pub fn broadcast_channel(&self) -> String {
        self.of("mesa:broadcast")
    }
}

/// Escapes an id for a hash tag: braces in it must not end the tag.
fn tag(user: &str) -> String {
    let mut tag = String::with_capacity(user.len());
    for character in user.chars() {
        match character {
            '{' => tag.push_str("%7B"),
            '}' => tag.push_str("%7D"),
            '%' => tag.push_str("%25"),
            character => tag.push(character),
        }
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_users_and_namespaces_differ() {
        let (none, shop) = (Keys::new(None), Keys::new(Some("shop")));
        assert_eq!(shop.original(Name::Clients), "connected_clients_shop");
        let users = ["a", "}", "{", "%7D", "a}b", "a}_shop", "a_shop"];
        let mut keys: Vec<_> = users.iter().flat_map(|user| [none.state(user), shop.state(user)]).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 2 * users.len());
        assert_eq!(none.state("}").matches('}').count(), 1, "the tag ends where it should");
        assert_ne!(none.dedup_entry("a", "x_shop"), shop.dedup_entry("a", "x"));
        assert_ne!(none.dispatch_result("x_shop"), shop.dispatch_result("x"));
    }
}
