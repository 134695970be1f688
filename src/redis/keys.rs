//! What stands in the Redis under which key. Every name ends in the suffix of the namespace, as stock's do; keys of one user
//! share a hash tag, so that they are in one slot of a Cluster.

use crate::compat::keyspace::{self, Name};

/// What a namespace calls things.
#[derive(Clone, Debug)]
pub struct Keys {
    original: keyspace::Keyspace,
    suffix: String,
}

impl Keys {
    /// Keys with the suffix of this namespace.
    #[must_use]
    pub fn new(namespace: Option<&str>) -> Self {
        Self {
            original: keyspace::Keyspace::new(namespace),
            suffix: namespace.map(|namespace| format!("_{namespace}")).unwrap_or_default(),
        }
    }

    /// What stock calls it, in this namespace.
    #[must_use]
    pub fn original(&self, name: Name) -> String {
        self.original.of(name)
    }

    fn of(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    fn of_user(&self, what: &str, user: &str) -> String {
        format!("mesa:{what}:{{{}}}{}", tag(user), self.suffix)
    }

    /// Where a user's log stands: head, cursors, gaps.
    #[must_use]
    pub fn state(&self, user: &str) -> String {
        self.of_user("state", user)
    }

    /// A user's messages.
    #[must_use]
    pub fn log(&self, user: &str) -> String {
        self.of_user("log", user)
    }

    /// What a dispatch with an id came to for one user. Ids end as they like: the namespace stands before them.
    #[must_use]
    pub fn dedup_entry(&self, user: &str, id: &str) -> String {
        format!("mesa:done{}:{{{}}}:{id}", self.suffix, tag(user))
    }

    /// That a user has his copy of a message that several servers know of.
    #[must_use]
    pub fn delivered_copy(&self, user: &str, id: &str) -> String {
        format!("mesa:copied{}:{{{}}}:{id}", self.suffix, tag(user))
    }

    /// What was answered to a dispatch with an id. No namespace has a `/` in it.
    #[must_use]
    pub fn dispatch_result(&self, id: &str) -> String {
        format!("mesa:answer{}/{id}", self.suffix)
    }

    /// Every user something is kept of, in order.
    #[must_use]
    pub fn user_index(&self) -> String {
        self.of("mesa:known")
    }

    /// When somebody has to look after a user although nothing happens.
    #[must_use]
    pub fn expiry_index(&self) -> String {
        self.of("mesa:due")
    }

    /// The servers, and until when each lease holds.
    #[must_use]
    pub fn servers(&self) -> String {
        self.of("mesa:{here}:nodes")
    }

    /// What this Redis was when a server last looked.
    #[must_use]
    pub fn epoch(&self) -> String {
        self.of("mesa:{here}:era")
    }

    /// Who is here, in order.
    #[must_use]
    pub fn online(&self) -> String {
        self.of("mesa:{here}:online")
    }

    /// Whom we have put among those whom stock takes to be connected: 0, or since when he is not there any more.
    #[must_use]
    pub fn original_users_added(&self) -> String {
        self.of("mesa:{here}:ours")
    }

    /// RedisBackplane that have died, and until when somebody is taking away what each has left.
    #[must_use]
    pub fn dead_servers(&self) -> String {
        self.of("mesa:{here}:dead")
    }

    /// Who is connected to one server, and how often.
    #[must_use]
    pub fn server_users(&self, node: &str) -> String {
        let (begin, end) = self.server_users_affixes();
        format!("{begin}{node}{end}")
    }

    /// What stands before and behind the server's name in that.
    #[must_use]
    pub fn server_users_affixes(&self) -> (String, String) {
        ("mesa:{here}:at:".to_owned(), self.suffix.clone())
    }

    /// How many connections each server has.
    #[must_use]
    pub fn connection_counts(&self) -> String {
        self.of("mesa:{here}:counts")
    }

    /// The servers at which somebody is to be told everything that happens, and the channel on which they come and go.
    #[must_use]
    pub fn event_subscribers(&self) -> String {
        self.of("mesa:watching")
    }

    /// How far a list was read that was taken from what the original has left for a user, and the list: in the slot of
    /// [`Keys::stock`]`(Name::Undelivered)`, where a Cluster has slots.
    #[must_use]
    pub fn taken_list(&self, user: &str) -> (String, String) {
        let hash = self.original(Name::Undelivered);
        (format!("mesa:{{{hash}}}:taken-at:{user}"), format!("mesa:{{{hash}}}:taken:{user}"))
    }

    /// What the original has left for a user and no client can be sent: in the same slot.
    #[must_use]
    pub fn unsendable(&self, user: &str) -> String {
        format!("mesa:{{{}}}:aside:{user}", self.original(Name::Undelivered))
    }

    /// How late it was when a server with a clock of its own has left: only tests have one.
    #[must_use]
    pub fn test_clock(&self) -> String {
        self.of("mesa:clock")
    }

    /// The channel on which it is said who has more.
    #[must_use]
    pub fn append_channel(&self) -> String {
        self.of("mesa:wake")
    }

    /// The channel for what is never kept, and for who is to go.
    #[must_use]
    pub fn broadcast_channel(&self) -> String {
        self.of("mesa:past")
    }
}

/// An id between braces: what is in it must not end them.
fn tag(user: &str) -> String {
    let mut tag = String::with_capacity(user.len());
    for each in user.chars() {
        match each {
            '{' => tag.push_str("%7B"),
            '}' => tag.push_str("%7D"),
            '%' => tag.push_str("%25"),
            each => tag.push(each),
        }
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_and_no_namespace_has_the_key_of_another() {
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
