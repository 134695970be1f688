//! Names of the original's keys and channels on Redis, with the suffix of the namespace.

/// A key or channel of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Channel of dispatches.
    Ws,
    /// Channel of client events.
    Portal,
    /// Set of portals, and the channel of their announcements.
    Pool,
    /// Set of online users.
    Clients,
    /// Number of connections.
    Count,
    /// Pending messages, a field for each user.
    Undelivered,
}

const ALL: [(Name, &str, &str); 6] = [
    (Name::Ws, "ws", "none"),
    (Name::Portal, "portal", "none"),
    (Name::Pool, "available_portals_pool", "set"),
    (Name::Clients, "connected_clients", "set"),
    (Name::Count, "connected_clients_count", "string"),
    (Name::Undelivered, "undelivered_messages", "hash"),
];

/// The keys and channels of one namespace.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// `_NAMESPACE`, or empty.
    suffix: String,
}

impl Keyspace {
    pub fn new(namespace: Option<&str>) -> Self {
        Self { suffix: namespace.map(|namespace| format!("_{namespace}")).unwrap_or_default() }
    }

    /// Finds the key or channel with this full name.
    pub fn find(&self, name: &[u8]) -> Option<Name> {
        let name = name.strip_suffix(self.suffix.as_bytes())?;
        ALL.iter().find(|(_, known, _)| known.as_bytes() == name).map(|(known, _, _)| *known)
    }

    /// Returns the full name of a key or channel.
    pub fn of(&self, name: Name) -> String {
        let base = ALL.iter().find(|(known, _, _)| *known == name).map_or("", |(_, base, _)| base);
        format!("{base}{}", self.suffix)
    }

    /// Lists the names that are keys.
    pub fn keys() -> impl Iterator<Item = Name> {
        ALL.iter().filter(|(_, _, kind)| *kind != "none").map(|(name, _, _)| *name)
    }

    /// Returns the type of a key's value, in the terms of Redis. `none` for a channel.
    pub fn kind(name: Name) -> &'static str {
        ALL.iter().find(|(known, _, _)| *known == name).map_or("none", |(_, _, kind)| kind)
    }

    /// Returns the error reply for an unknown name. Mostly the namespace differs.
    pub fn refusal(&self, name: &[u8]) -> String {
        let name: String = String::from_utf8_lossy(name).chars().take(100).collect();
        let namespace = match self.suffix.strip_prefix('_') {
            Some(namespace) => format!("its namespace is {namespace}; configure the same for Dispatchers and Portals"),
            None => "it has no namespace; configure none for Dispatchers and Portals".to_owned(),
        };
        format!("ERR this server has no '{name}': {namespace}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_accepts_only_names_with_the_namespace() {
        let plain = Keyspace::new(None);
        assert_eq!(plain.find(b"ws"), Some(Name::Ws));
        assert_eq!(plain.find(b"connected_clients_count"), Some(Name::Count));
        assert_eq!(plain.find(b"ws_chat"), None);
        let chat = Keyspace::new(Some("chat"));
        assert_eq!(chat.find(b"connected_clients_chat"), Some(Name::Clients));
        for other in [&b"ws"[..], b"ws_", b"ws_chat_chat", b"_chat", b"", b"\xff_chat"] {
            assert_eq!(chat.find(other), None);
        }
        for name in Keyspace::keys() {
            assert_eq!(chat.find(chat.of(name).as_bytes()), Some(name));
        }
        assert!(chat.refusal(b"ws").contains("its namespace is chat"));
    }
}
