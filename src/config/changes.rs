//! Compares configurations, for a reload.

use super::{Config, schema::KEYS};

impl Config {
    /// Returns the names of the keys whose values differ, in the order of the documentation.
    #[must_use]
    pub fn changed_keys(&self, other: &Self) -> Vec<&'static str> {
        let (own, others) = (self.with_secrets(), other.with_secrets());
        let differs = |name: &str| match name {
            "redis" => self.redis != other.redis,
            name => {
                let pointer = format!("/{}", name.replace('.', "/"));
                own.pointer(&pointer) != others.pointer(&pointer)
            }
        };
        KEYS.iter().map(|key| key.name).filter(|name| differs(name)).collect()
    }

    /// Takes the values that a running server can change from `new`. All others need a restart.
    ///
    /// The bounds that a component copies when it is built are not among them.
    pub(crate) fn take_reloadable(&mut self, new: &Self) {
        self.api.keys.clone_from(&new.api.keys);
        self.api.cors_origins.clone_from(&new.api.cors_origins);
        self.origins.clone_from(&new.origins);
        let (own, others) = (&mut self.authentication, &new.authentication);
        own.jwt.clone_from(&others.jwt);
        own.webhook.clone_from(&others.webhook);
        (own.insecure, own.insecure_public) = (others.insecure, others.insecure_public);
        let kept = self.limits.clone();
        self.limits = super::Limits {
            queue: kept.queue,
            unsynced_messages: kept.unsynced_messages,
            unsynced_bytes: kept.unsynced_bytes,
            ..new.limits.clone()
        };
        self.redis_protocol.password.clone_from(&new.redis_protocol.password);
        self.log.level.clone_from(&new.log.level);
    }
}
