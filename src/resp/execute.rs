//! Executes commands.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    channels::{CHANNELS_MAX, NAME_BYTES_MAX},
    command::{self, Command},
    connection::{Connection, SessionEnd},
    encode, info,
    parser::Arguments,
    payload::{self, Published},
    pipeline,
    portal_registry::ID_BYTES_MAX,
    queries,
};
use crate::{
    compat::{
        keyspace::{Keyspace, Name},
        portal::PortalAnnouncement,
    },
    hub::{Dispatch, StoreError},
    message::Recipients,
};

/// Databases that SELECT accepts. The original selects the database of its address; here all are the same.
const DATABASES: u32 = 16;

const PORTALS_OFF: &str = "ERR portals are off on this server: set portal.enabled to true in its configuration";

const SYNC_OFF: &str =
    "ERR o.ttl and o.collapse need stored messages: set sync.enabled to true in this server's configuration";

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    /// Executes a command, and writes its reply to the batch.
    pub(super) async fn execute(&mut self, command: Command) -> Result<(), SessionEnd> {
        if !self.check_allowed(&command) {
            return Ok(());
        }
        match command {
            Command::Ping(text) => self.ping(text),
            Command::Echo(text) => encode::bulk(self.batch.reply(), &text),
            Command::Quit => {
                encode::ok(self.batch.reply());
                return Err(SessionEnd::Quit);
            }
            Command::Auth(password) => return self.auth(&password).await,
            Command::Select(index) => self.select(&index),
            Command::Info => encode::bulk(self.batch.reply(), info::text(&self.server).as_bytes()),
            Command::Client(words) => self.client(words),
            Command::Help(words) => match words.first() {
                Some(what) if what.eq_ignore_ascii_case(b"count") => {
                    encode::integer(self.batch.reply(), command::COUNT as u64);
                }
                // Interactive clients send other forms to show hints. There are no hints.
                _ => encode::array(self.batch.reply(), 0),
            },
            Command::Keys(pattern) => self.keys(&pattern),
            Command::Type(key) => {
                let kind = self.server.names.find(&key).map_or("none", Keyspace::kind);
                encode::simple(self.batch.reply(), kind);
            }
            Command::Get(key) => match self.server.names.find(&key) {
                Some(Name::Count) => {
                    let count = self.server.hub.all_connection_count().await.to_string();
                    encode::bulk(self.batch.reply(), count.as_bytes());
                }
                _ => encode::nil(self.batch.reply()),
            },
            Command::SetMembers(key) => self.members(&key).await,
            Command::SetCount(key) => {
                let count = match self.server.names.find(&key) {
                    Some(Name::Clients) => self.server.hub.all_online_count().await,
                    Some(Name::Pool) => self.server.portals.as_ref().map_or(0, |portals| portals.ids().len()),
                    _ => 0,
                };
                encode::integer(self.batch.reply(), count as u64);
            }
            Command::SetHas(key, member) => {
                let has = match self.server.names.find(&key) {
                    Some(Name::Clients) => queries::is_online(&self.server.hub, &member).await,
                    Some(Name::Pool) => {
                        let portals = self.server.portals.as_ref();
                        portals.is_some_and(|portals| portals.ids().iter().any(|id| id.as_bytes() == &member[..]))
                    }
                    _ => false,
                };
                encode::integer(self.batch.reply(), has.into());
            }
            Command::SetAdd(key, members) => self.change_pool(&key, &members, true),
            Command::SetRemove(key, members) => self.change_pool(&key, &members, false),
            Command::HashGet(key, user) => self.pending(&key, &user, false).await,
            Command::HashHas(key, user) => self.pending(&key, &user, true).await,
            Command::HashKeys(key) => self.users_with_pending(&key, false).await,
            Command::HashCount(key) => self.users_with_pending(&key, true).await,
            Command::HashSet(key, user, list) => self.append(&key, &user, &list).await,
            Command::HashDelete(key, users) => self.clear(&key, &users).await,
            Command::Publish(channel, text) => self.publish(&channel, &text).await,
            Command::Subscribe(channels) => return self.subscribe(channels),
            Command::Unsubscribe(channels) => self.unsubscribe(channels),
        }
        Ok(())
    }

    fn ping(&mut self, text: Option<Bytes>) {
        let subscribed = !self.channels.is_empty();
        let out = self.batch.reply();
        match text {
            // The reply to a subscriber has the form of a pushed message.
            text if subscribed => {
                encode::array(out, 2);
                encode::bulk(out, b"pong");
                encode::bulk(out, &text.unwrap_or_default());
            }
            Some(text) => encode::bulk(out, &text),
            None => encode::simple(out, "PONG"),
        }
    }

    async fn auth(&mut self, password: &[u8]) -> Result<(), SessionEnd> {
        let live = self.server.live.load().clone();
        if live.redis_protocol_password.is_some() {
            self.admit_password()?;
        }
        match live.redis_protocol_password.as_ref().map(|known| known.check(password)) {
            Some(true) => {
                self.mark_authenticated();
                encode::ok(self.batch.reply());
                Ok(())
            }
            Some(false) => self.wrong_password(password).await,
            None => {
                // The text of Redis, which clients recognize, and then continue.
                self.reject(
                    "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
                     configuration is correct?",
                );
                Ok(())
            }
        }
    }

    fn select(&mut self, index: &[u8]) {
        match std::str::from_utf8(index).ok().and_then(|index| index.parse::<u32>().ok()) {
            Some(index) if index < DATABASES => encode::ok(self.batch.reply()),
            _ => self.reject("ERR DB index is out of range"),
        }
    }

    /// Executes CLIENT: the name and id of a connection.
    fn client(&mut self, words: Arguments) {
        let mut words = words.into_iter();
        let what = words.next().unwrap_or_default().to_ascii_lowercase();
        match &what[..] {
            b"setname" => {
                let name = words.next().unwrap_or_default();
                self.name = (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then(|| Bytes::copy_from_slice(&name));
                encode::ok(self.batch.reply());
            }
            b"getname" => match self.name.clone() {
                Some(name) => encode::bulk(self.batch.reply(), &name),
                None => encode::nil(self.batch.reply()),
            },
            b"setinfo" => encode::ok(self.batch.reply()),
            b"id" => encode::integer(self.batch.reply(), self.subscriber.number),
            _ => self.reject("ERR unknown subcommand: CLIENT supports SETNAME, GETNAME, SETINFO and ID"),
        }
    }

    /// Executes KEYS, for a key or a prefix followed by `*`.
    fn keys(&mut self, pattern: &[u8]) {
        let names: Vec<String> = Keyspace::keys().map(|name| self.server.names.of(name)).collect();
        let matches_pattern = |name: &&String| match pattern.strip_suffix(b"*") {
            Some(begin) => name.as_bytes().starts_with(begin),
            None => name.as_bytes() == pattern,
        };
        let matches: Vec<&String> = names.iter().filter(matches_pattern).collect();
        let out = self.batch.reply();
        encode::array(out, matches.len());
        matches.iter().for_each(|name| encode::bulk(out, name.as_bytes()));
    }

    async fn members(&mut self, key: &[u8]) {
        match self.server.names.find(key) {
            Some(Name::Clients) => queries::online_users(&self.server.hub, self.batch.reply()).await,
            Some(Name::Pool) => {
                let ids = self.server.portals.as_ref().map(|portals| portals.ids()).unwrap_or_default();
                let out = self.batch.reply();
                encode::array(out, ids.len());
                ids.iter().for_each(|id| encode::bulk(out, id.as_bytes()));
            }
            _ => encode::array(self.batch.reply(), 0),
        }
    }

    /// Adds portals to the pool, or removes them.
    fn change_pool(&mut self, key: &[u8], ids: &[Bytes], adds: bool) {
        match self.server.names.find(key) {
            Some(Name::Pool) => {}
            Some(_) => {
                return self.reject(
                    "ERR this key is read-only: the server maintains it; only portals can be added or removed",
                );
            }
            None => return self.reject(&self.server.names.refusal(key)),
        }
        let mut changed = 0;
        for id in ids {
            match self.change_portal(&String::from_utf8_lossy(id), adds) {
                Ok(new) => changed += u64::from(new),
                Err(why) => return self.reject(why),
            }
        }
        encode::integer(self.batch.reply(), changed);
    }

    /// Adds or removes a portal. Returns whether that has changed the pool.
    fn change_portal(&self, id: &str, adds: bool) -> Result<bool, &'static str> {
        let Some(portals) = &self.server.portals else { return Err(PORTALS_OFF) };
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err("ERR the id of a portal has 1 to 256 bytes");
        }
        if adds {
            let announced = portals.announce(id, self.subscriber.number, self.subscriber.address);
            announced.ok_or("ERR too many portals are connected (256); close one first")
        } else {
            Ok(portals.leave(id))
        }
    }

    /// Replies with the pending messages of a user, or with whether there are any.
    async fn pending(&mut self, key: &[u8], user: &[u8], exists_only: bool) {
        if self.server.names.find(key) != Some(Name::Undelivered) {
            let out = self.batch.reply();
            return if exists_only { encode::integer(out, 0) } else { encode::nil(out) };
        }
        if queries::user_id(user).is_some_and(|user| self.batch.has_user(&user)) {
            // The reply must include what this connection has appended.
            self.commit().await;
        }
        let list = queries::pending(&self.server.hub, user).await;
        let out = self.batch.reply();
        match list {
            Ok(list) if exists_only => encode::integer(out, list.is_some().into()),
            Ok(Some(list)) => encode::bulk(out, &list),
            Ok(None) => encode::nil(out),
            Err(error) => pipeline::write_store_error(out, &error),
        }
    }

    /// Replies with the users with pending messages, or with their number.
    async fn users_with_pending(&mut self, key: &[u8], count_only: bool) {
        if self.server.names.find(key) != Some(Name::Undelivered) {
            let out = self.batch.reply();
            return if count_only { encode::integer(out, 0) } else { encode::array(out, 0) };
        }
        self.commit().await;
        let mut reply = BytesMut::new();
        match queries::users_with_pending(&self.server.hub, &mut reply, count_only).await {
            Ok(()) => self.batch.reply().unsplit(reply),
            Err(error) => pipeline::write_store_error(self.batch.reply(), &error),
        }
    }

    /// Executes `HSET undelivered_messages USER LIST`: appends the last message of the list to the user's log, online
    /// or not.
    async fn append(&mut self, key: &[u8], user: &[u8], list: &[u8]) {
        match self.server.names.find(key) {
            Some(Name::Undelivered) => {}
            Some(_) => return self.reject("ERR this key is read-only: the server maintains it"),
            None => return self.reject(&self.server.names.refusal(key)),
        }
        let Some(user) = queries::user_id(user) else {
            return self.reject("ERR invalid user id: it must be 1 to 256 bytes of UTF-8, without control characters");
        };
        match payload::parse_hset_value(list, user) {
            Ok(dispatch) if !self.server.hub.is_sync_enabled() && dispatch.requires_storage() => self.reject(SYNC_OFF),
            Ok(dispatch) if !self.server.hub.is_sync_enabled() && dispatch.sync => self.send_or_drop(dispatch).await,
            Ok(dispatch) => self.dispatch(vec![dispatch], list.len()).await,
            Err(why) => self.reject(&format!("ERR {why}")),
        }
    }

    /// Executes HDEL: clears the logs of users.
    async fn clear(&mut self, key: &[u8], users: &[Bytes]) {
        match self.server.names.find(key) {
            Some(Name::Undelivered) => {}
            Some(_) => return self.reject("ERR this key is read-only: the server maintains it"),
            None => return self.reject(&self.server.names.refusal(key)),
        }
        self.commit().await;
        let mut cleared = 0;
        for user in users.iter().filter_map(|user| queries::user_id(user)) {
            match self.server.hub.clear(&user).await {
                Ok(count) => cleared += u64::from(count > 0),
                Err(error) => return pipeline::write_store_error(self.batch.reply(), &error),
            }
        }
        encode::integer(self.batch.reply(), cleared);
    }

    /// Executes PUBLISH.
    async fn publish(&mut self, channel: &[u8], text: &[u8]) {
        match self.server.names.find(channel) {
            Some(Name::Ws) => {
                match payload::parse_publish(text, self.server.live.load().limits.recipients) {
                    Ok(Published::Dispatches(dispatches))
                        if !self.server.hub.is_sync_enabled() && dispatches.iter().any(Dispatch::requires_storage) =>
                    {
                        self.reject(SYNC_OFF);
                    }
                    Ok(Published::Dispatches(dispatches)) => {
                        self.server.channels.publish(channel, text);
                        self.dispatch(dispatches, text.len()).await;
                    }
                    Ok(Published::Disconnect(recipients)) => {
                        self.server.channels.publish(channel, text);
                        // Earlier messages must be sent first.
                        self.commit().await;
                        let outcome = self.server.hub.disconnect(&recipients, &[]).await;
                        encode::integer(self.batch.reply(), outcome.online as u64);
                    }
                    Err(why) => self.reject(&format!("ERR {why}")),
                }
            }
            Some(Name::Pool) => match payload::parse_portal_announcement(text) {
                Ok(PortalAnnouncement { id, ready }) => match self.change_portal(&id, ready) {
                    Ok(_) => {
                        // This server counts as one more subscriber.
                        let receivers = self.server.channels.publish(channel, text) + 1;
                        encode::integer(self.batch.reply(), receivers as u64);
                    }
                    Err(why) => self.reject(why),
                },
                Err(why) => self.reject(&format!("ERR {why}")),
            },
            Some(Name::Portal) => {
                let receivers = self.server.channels.publish(channel, text);
                encode::integer(self.batch.reply(), receivers as u64);
            }
            _ => self.reject(&self.server.names.refusal(channel)),
        }
    }

    /// Dispatches the messages of one command. The reply is the number of recipients that accepted them.
    async fn dispatch(&mut self, mut dispatches: Vec<Dispatch>, bytes: usize) {
        if let [dispatch] = &dispatches[..]
            && dispatch.rejected.is_empty()
            && matches!(&dispatch.recipients, Recipients::Users(users) if users.is_empty())
        {
            // A Dispatcher publishes even if all its recipients are offline.
            return encode::integer(self.batch.reply(), 0);
        }
        if dispatches.len() == 1
            && let Some(dispatch) = dispatches.pop()
        {
            let users = match &dispatch.recipients {
                Recipients::Users(users) => users.clone(),
                Recipients::Everyone => Vec::new(),
            };
            match self.server.hub.prepare(dispatch) {
                Ok(prepared) => return self.batch.push(prepared, &users, bytes),
                Err(unsynced) => dispatches.push(unsynced),
            }
        }
        // An unsynced message must not overtake earlier messages.
        self.commit().await;
        let sync = self.server.hub.is_sync_enabled();
        let is_stored = |dispatch: &Dispatch| sync && dispatch.sync && dispatch.recipients != Recipients::Everyone;
        let stored: Vec<bool> = dispatches.iter().map(is_stored).collect();
        let drops: Vec<bool> = dispatches.iter().map(|dispatch| !sync && dispatch.sync).collect();
        // A command has one reply, so the error of one message is the error of the command.
        let results = self.server.hub.dispatch_all(dispatches).await;
        match results.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(outcomes) => {
                let dropped = outcomes.iter().zip(drops).filter(|(_, drops)| *drops);
                self.server.report_unstored(dropped.map(|(outcome, _)| outcome.offline).sum());
                let accepted = outcomes.iter().zip(stored).map(|(outcome, stored)| {
                    let accepted = self.server.accepted_count(outcome, &self.subscriber);
                    // An unsynced message counts for online users only.
                    if stored { accepted } else { outcome.online as u64 }
                });
                let accepted = accepted.sum();
                encode::integer(self.batch.reply(), accepted);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Sends an appended message to its user if online, and drops it otherwise, because sync is off.
    ///
    /// The reply is success either way. A Dispatcher whose own `sync` is on appends whatever this server's setting is.
    /// It leaves an error unhandled, which ends its process. The drop is counted and logged instead.
    async fn send_or_drop(&mut self, dispatch: Dispatch) {
        // Earlier messages must be delivered first.
        self.commit().await;
        match self.server.hub.dispatch(dispatch).await {
            Ok(outcome) => {
                self.server.report_unstored(outcome.offline);
                let accepted = self.server.accepted_count(&outcome, &self.subscriber);
                encode::integer(self.batch.reply(), accepted);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Replies with a store error, and logs it.
    fn fail(&mut self, error: &StoreError) {
        pipeline::log_failure(error);
        pipeline::write_store_error(self.batch.reply(), error);
    }

    fn subscribe(&mut self, channels: Arguments) -> Result<(), SessionEnd> {
        for channel in channels {
            if channel.len() > NAME_BYTES_MAX || self.channels.len() >= CHANNELS_MAX {
                self.reject(&format!(
                    "ERR a connection may have at most {CHANNELS_MAX} channels, with names of at most {NAME_BYTES_MAX} bytes"
                ));
                return Err(SessionEnd::Rejected);
            }
            if !self.channels.contains(&channel) {
                self.channels.push(Bytes::copy_from_slice(&channel));
                self.server.subscribe(channel.clone(), &self.subscriber);
            }
            self.reply_subscription("subscribe", Some(&channel));
        }
        Ok(())
    }

    fn unsubscribe(&mut self, channels: Arguments) {
        let channels = if channels.is_empty() { self.channels.clone() } else { channels };
        if channels.is_empty() {
            self.reply_subscription("unsubscribe", None);
        }
        for channel in channels {
            if let Some(at) = self.channels.iter().position(|subscribed| *subscribed == channel) {
                self.channels.remove(at);
                self.server.unsubscribe(&channel, &self.subscriber, &[]);
            }
            self.reply_subscription("unsubscribe", Some(&channel));
        }
    }

    fn reply_subscription(&mut self, action: &str, channel: Option<&[u8]>) {
        let count = self.channels.len() as u64;
        let out = self.batch.reply();
        encode::array(out, 3);
        encode::bulk(out, action.as_bytes());
        match channel {
            Some(channel) => encode::bulk(out, channel),
            None => encode::nil(out),
        }
        encode::integer(out, count);
    }
}
