//! What each command does.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    channels::{CHANNELS_MAX, NAME_BYTES_MAX},
    command::{self, Command},
    connection::{Connection, End},
    encode, info,
    parser::Words,
    payload::{self, Published},
    pipeline,
    portal_registry::ID_BYTES_MAX,
    queries,
};
use crate::{
    compat::{
        dispatch::PortalAnnouncement,
        keyspace::{Keyspace, Name},
    },
    hub::{Dispatch, StoreError},
    message::Recipients,
};

/// Databases that a connection may ask for. Stock asks for the one in its address; there is one for all.
const DATABASES: u32 = 16;

const PORTALS_OFF: &str = "ERR portals are off on this server: set portal.enabled in its configuration to true";

const SYNC_OFF: &str = "ERR o.ttl and o.collapse are for messages that are kept: sync.enabled is off on this server";

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    pub(super) async fn hear(&mut self, command: Command) -> Result<(), End> {
        if !self.may(&command) {
            return Ok(());
        }
        match command {
            Command::Ping(text) => self.ping(text),
            Command::Echo(text) => encode::bulk(self.batch.answer(), &text),
            Command::Quit => {
                encode::ok(self.batch.answer());
                return Err(End::Quit);
            }
            Command::Auth(password) => return self.auth(&password).await,
            Command::Select(index) => self.select(&index),
            Command::Info => encode::bulk(self.batch.answer(), info::text(&self.wire).as_bytes()),
            Command::Client(words) => self.client(words),
            Command::Help(words) => match words.first() {
                Some(what) if what.eq_ignore_ascii_case(b"count") => {
                    encode::integer(self.batch.answer(), command::COUNT as u64);
                }
                // What they take is asked for to give hints to who types them; there is none to give.
                _ => encode::array(self.batch.answer(), 0),
            },
            Command::Keys(pattern) => self.keys(&pattern),
            Command::Type(key) => {
                let kind = self.wire.names.find(&key).map_or("none", Keyspace::kind);
                encode::simple(self.batch.answer(), kind);
            }
            Command::Get(key) => match self.wire.names.find(&key) {
                Some(Name::Count) => {
                    let count = self.wire.hub.all_connections().await.to_string();
                    encode::bulk(self.batch.answer(), count.as_bytes());
                }
                _ => encode::nil(self.batch.answer()),
            },
            Command::SetMembers(key) => self.members(&key).await,
            Command::SetCount(key) => {
                let count = match self.wire.names.find(&key) {
                    Some(Name::Clients) => self.wire.hub.all_online_count().await,
                    Some(Name::Pool) => self.wire.portals.as_ref().map_or(0, |portals| portals.ids().len()),
                    _ => 0,
                };
                encode::integer(self.batch.answer(), count as u64);
            }
            Command::SetHas(key, member) => {
                let has = match self.wire.names.find(&key) {
                    Some(Name::Clients) => queries::is_here(&self.wire.hub, &member).await,
                    Some(Name::Pool) => {
                        let portals = self.wire.portals.as_ref();
                        portals.is_some_and(|portals| portals.ids().iter().any(|id| id.as_bytes() == &member[..]))
                    }
                    _ => false,
                };
                encode::integer(self.batch.answer(), has.into());
            }
            Command::SetAdd(key, members) => self.pool(&key, &members, true),
            Command::SetRemove(key, members) => self.pool(&key, &members, false),
            Command::HashGet(key, user) => self.waiting(&key, &user, false).await,
            Command::HashHas(key, user) => self.waiting(&key, &user, true).await,
            Command::HashKeys(key) => self.who_waits(&key, false).await,
            Command::HashCount(key) => self.who_waits(&key, true).await,
            Command::HashSet(key, user, list) => self.keep(&key, &user, &list).await,
            Command::HashDelete(key, users) => self.clear(&key, &users).await,
            Command::Publish(channel, text) => self.publish(&channel, &text).await,
            Command::Subscribe(channels) => return self.subscribe(channels),
            Command::Unsubscribe(channels) => self.unsubscribe(channels),
        }
        Ok(())
    }

    fn ping(&mut self, text: Option<Bytes>) {
        let subscribed = !self.channels.is_empty();
        let out = self.batch.answer();
        match text {
            // Where answers stand between messages they look like those.
            text if subscribed => {
                encode::array(out, 2);
                encode::bulk(out, b"pong");
                encode::bulk(out, &text.unwrap_or_default());
            }
            Some(text) => encode::bulk(out, &text),
            None => encode::simple(out, "PONG"),
        }
    }

    async fn auth(&mut self, password: &[u8]) -> Result<(), End> {
        if self.wire.password.is_some() {
            self.admit_password()?;
        }
        match self.wire.password.as_ref().map(|known| known.check(password)) {
            Some(true) => {
                self.let_in();
                encode::ok(self.batch.answer());
                Ok(())
            }
            Some(false) => self.wrong_password(password).await,
            None => {
                // Clients look for these words, and go on.
                self.refuse(
                    "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
                     configuration is correct?",
                );
                Ok(())
            }
        }
    }

    fn select(&mut self, index: &[u8]) {
        match std::str::from_utf8(index).ok().and_then(|index| index.parse::<u32>().ok()) {
            Some(index) if index < DATABASES => encode::ok(self.batch.answer()),
            _ => self.refuse("ERR DB index is out of range"),
        }
    }

    /// What clients say of themselves, and ask of themselves.
    fn client(&mut self, words: Words) {
        let mut words = words.into_iter();
        let what = words.next().unwrap_or_default().to_ascii_lowercase();
        match &what[..] {
            b"setname" => {
                let name = words.next().unwrap_or_default();
                self.name = (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then(|| Bytes::copy_from_slice(&name));
                encode::ok(self.batch.answer());
            }
            b"getname" => match self.name.clone() {
                Some(name) => encode::bulk(self.batch.answer(), &name),
                None => encode::nil(self.batch.answer()),
            },
            b"setinfo" => encode::ok(self.batch.answer()),
            b"id" => encode::integer(self.batch.answer(), self.subscriber.number),
            _ => self.refuse("ERR unknown subcommand: CLIENT takes SETNAME, GETNAME, SETINFO and ID"),
        }
    }

    /// A pattern is a name, with a star for whatever is left of it.
    fn keys(&mut self, pattern: &[u8]) {
        let names: Vec<String> = Keyspace::keys().map(|name| self.wire.names.of(name)).collect();
        let fits = |name: &&String| match pattern.strip_suffix(b"*") {
            Some(begin) => name.as_bytes().starts_with(begin),
            None => name.as_bytes() == pattern,
        };
        let found: Vec<&String> = names.iter().filter(fits).collect();
        let out = self.batch.answer();
        encode::array(out, found.len());
        found.iter().for_each(|name| encode::bulk(out, name.as_bytes()));
    }

    async fn members(&mut self, key: &[u8]) {
        match self.wire.names.find(key) {
            Some(Name::Clients) => queries::who_is_here(&self.wire.hub, self.batch.answer()).await,
            Some(Name::Pool) => {
                let ids = self.wire.portals.as_ref().map(|portals| portals.ids()).unwrap_or_default();
                let out = self.batch.answer();
                encode::array(out, ids.len());
                ids.iter().for_each(|id| encode::bulk(out, id.as_bytes()));
            }
            _ => encode::array(self.batch.answer(), 0),
        }
    }

    /// Portals come to the pool, or go.
    fn pool(&mut self, key: &[u8], ids: &[Bytes], come: bool) {
        match self.wire.names.find(key) {
            Some(Name::Pool) => {}
            Some(_) => return self.refuse("ERR this server keeps that by itself; portals are all that can be added"),
            None => return self.refuse(&self.wire.names.refusal(key)),
        }
        let mut changed = 0;
        for id in ids {
            match self.portal(&String::from_utf8_lossy(id), come) {
                Ok(new) => changed += u64::from(new),
                Err(why) => return self.refuse(why),
            }
        }
        encode::integer(self.batch.answer(), changed);
    }

    fn portal(&self, id: &str, come: bool) -> Result<bool, &'static str> {
        let Some(portals) = &self.wire.portals else { return Err(PORTALS_OFF) };
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err("ERR the id of a portal has 1 to 256 bytes");
        }
        Ok(if come { portals.announce(id, self.subscriber.number, self.subscriber.address) } else { portals.leave(id) })
    }

    /// What waits for a user, or whether anything does.
    async fn waiting(&mut self, key: &[u8], user: &[u8], whether: bool) {
        if self.wire.names.find(key) != Some(Name::Undelivered) {
            let out = self.batch.answer();
            return if whether { encode::integer(out, 0) } else { encode::nil(out) };
        }
        if queries::user_id(user).is_some_and(|user| self.batch.concerns(&user)) {
            // It is to see what this connection has said before.
            self.settle().await;
        }
        let found = queries::waiting(&self.wire.hub, user).await;
        let out = self.batch.answer();
        match found {
            Ok(list) if whether => encode::integer(out, list.is_some().into()),
            Ok(Some(list)) => encode::bulk(out, &list),
            Ok(None) => encode::nil(out),
            Err(error) => pipeline::not_taken(out, &error),
        }
    }

    async fn who_waits(&mut self, key: &[u8], count_only: bool) {
        if self.wire.names.find(key) != Some(Name::Undelivered) {
            let out = self.batch.answer();
            return if count_only { encode::integer(out, 0) } else { encode::array(out, 0) };
        }
        self.settle().await;
        let mut found = BytesMut::new();
        match queries::who_waits(&self.wire.hub, &mut found, count_only).await {
            Ok(()) => self.batch.answer().unsplit(found),
            Err(error) => pipeline::not_taken(self.batch.answer(), &error),
        }
    }

    /// `HSET undelivered_messages USER LIST`: the last of the list is appended to the user's log, whether or not he has come
    /// meanwhile.
    async fn keep(&mut self, key: &[u8], user: &[u8], list: &[u8]) {
        match self.wire.names.find(key) {
            Some(Name::Undelivered) => {}
            Some(_) => return self.refuse("ERR this server keeps that by itself"),
            None => return self.refuse(&self.wire.names.refusal(key)),
        }
        let Some(user) = queries::user_id(user) else {
            return self.refuse("ERR this is no user id: it has 1 to 256 bytes of UTF-8, without control characters");
        };
        match payload::kept(list, user) {
            Ok(dispatch) if !self.wire.hub.is_sync_enabled() && dispatch.requires_storage() => self.refuse(SYNC_OFF),
            Ok(dispatch) if !self.wire.hub.is_sync_enabled() && dispatch.sync => self.send_or_drop(dispatch).await,
            Ok(dispatch) => self.dispatch(vec![dispatch], list.len()).await,
            Err(why) => self.refuse(&format!("ERR {why}")),
        }
    }

    async fn clear(&mut self, key: &[u8], users: &[Bytes]) {
        match self.wire.names.find(key) {
            Some(Name::Undelivered) => {}
            Some(_) => return self.refuse("ERR this server keeps that by itself"),
            None => return self.refuse(&self.wire.names.refusal(key)),
        }
        self.settle().await;
        let mut cleared = 0;
        for user in users.iter().filter_map(|user| queries::user_id(user)) {
            match self.wire.hub.clear(&user).await {
                Ok(count) => cleared += u64::from(count > 0),
                Err(error) => return pipeline::not_taken(self.batch.answer(), &error),
            }
        }
        encode::integer(self.batch.answer(), cleared);
    }

    async fn publish(&mut self, channel: &[u8], text: &[u8]) {
        match self.wire.names.find(channel) {
            Some(Name::Ws) => {
                match payload::published(text, self.wire.bounds.recipients) {
                    Ok(Published::Dispatches(dispatches))
                        if !self.wire.hub.is_sync_enabled() && dispatches.iter().any(Dispatch::requires_storage) =>
                    {
                        self.refuse(SYNC_OFF);
                    }
                    Ok(Published::Dispatches(dispatches)) => {
                        self.wire.channels.publish(channel, text);
                        self.dispatch(dispatches, text.len()).await;
                    }
                    Ok(Published::Disconnect(recipients)) => {
                        self.wire.channels.publish(channel, text);
                        // Behind what was said before.
                        self.settle().await;
                        let outcome = self.wire.hub.disconnect(&recipients, &[]).await;
                        encode::integer(self.batch.answer(), outcome.online as u64);
                    }
                    Err(why) => self.refuse(&format!("ERR {why}")),
                }
            }
            Some(Name::Pool) => match payload::ready(text) {
                Ok(PortalAnnouncement { id, ready }) => match self.portal(&id, ready) {
                    Ok(_) => {
                        // This server is one that has heard it.
                        let heard = self.wire.channels.publish(channel, text) + 1;
                        encode::integer(self.batch.answer(), heard as u64);
                    }
                    Err(why) => self.refuse(why),
                },
                Err(why) => self.refuse(&format!("ERR {why}")),
            },
            Some(Name::Portal) => {
                let heard = self.wire.channels.publish(channel, text);
                encode::integer(self.batch.answer(), heard as u64);
            }
            _ => self.refuse(&self.wire.names.refusal(channel)),
        }
    }

    /// Messages from one command, and its answer: for how many they were taken.
    async fn dispatch(&mut self, mut dispatches: Vec<Dispatch>, bytes: usize) {
        if let [only] = &dispatches[..]
            && only.rejected.is_empty()
            && matches!(&only.recipients, Recipients::Users(users) if users.is_empty())
        {
            // A Dispatcher publishes also where all are away.
            return encode::integer(self.batch.answer(), 0);
        }
        if dispatches.len() == 1
            && let Some(dispatch) = dispatches.pop()
        {
            let users = match &dispatch.recipients {
                Recipients::Users(users) => users.clone(),
                Recipients::Everyone => Vec::new(),
            };
            match self.wire.hub.prepare(dispatch) {
                Ok(kept) => return self.batch.keep(kept, &users, bytes),
                Err(past) => dispatches.push(past),
            }
        }
        // What passes the log by does not pass what was said before it.
        self.settle().await;
        let keeps = self.wire.hub.is_sync_enabled();
        let kept = |dispatch: &Dispatch| keeps && dispatch.sync && dispatch.recipients != Recipients::Everyone;
        let kept: Vec<bool> = dispatches.iter().map(kept).collect();
        let drops: Vec<bool> = dispatches.iter().map(|dispatch| !keeps && dispatch.sync).collect();
        match self.wire.hub.dispatch_all(dispatches).await {
            Ok(outcomes) => {
                let dropped = outcomes.iter().zip(drops).filter(|(_, drops)| *drops);
                self.wire.report_unstored(dropped.map(|(outcome, _)| outcome.offline).sum());
                let taken = outcomes.iter().zip(kept).map(|(outcome, kept)| {
                    let taken = self.wire.taken_for(outcome);
                    // What is not kept is taken for those who are here.
                    if kept { taken } else { outcome.online as u64 }
                });
                let taken = taken.sum();
                encode::integer(self.batch.answer(), taken);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Sends an appended message to its user if online, and drops it otherwise, because sync is off.
    ///
    /// The answer is success either way. A Dispatcher whose own `sync` is on appends whatever this server's says; it leaves an
    /// error unhandled, which ends its process. The drop is counted and logged instead.
    async fn send_or_drop(&mut self, dispatch: Dispatch) {
        // Messages that were answered before are delivered before.
        self.settle().await;
        match self.wire.hub.dispatch(dispatch).await {
            Ok(outcome) => {
                self.wire.report_unstored(outcome.offline);
                let taken = self.wire.taken_for(&outcome);
                encode::integer(self.batch.answer(), taken);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        pipeline::log_failure(error);
        pipeline::not_taken(self.batch.answer(), error);
    }

    fn subscribe(&mut self, channels: Words) -> Result<(), End> {
        for channel in channels {
            if channel.len() > NAME_BYTES_MAX || self.channels.len() >= CHANNELS_MAX {
                self.refuse(&format!(
                    "ERR a connection has {CHANNELS_MAX} channels at most, and their names 256 bytes"
                ));
                return Err(End::Refused);
            }
            if !self.channels.contains(&channel) {
                self.channels.push(Bytes::copy_from_slice(&channel));
                self.wire.subscribe(channel.clone(), &self.subscriber);
            }
            self.tell_subscriptions("subscribe", Some(&channel));
        }
        Ok(())
    }

    fn unsubscribe(&mut self, channels: Words) {
        let channels = if channels.is_empty() { self.channels.clone() } else { channels };
        if channels.is_empty() {
            self.tell_subscriptions("unsubscribe", None);
        }
        for channel in channels {
            if let Some(at) = self.channels.iter().position(|one| *one == channel) {
                self.channels.remove(at);
                self.wire.unsubscribe(&channel, &self.subscriber, &[]);
            }
            self.tell_subscriptions("unsubscribe", Some(&channel));
        }
    }

    fn tell_subscriptions(&mut self, what: &str, channel: Option<&[u8]>) {
        let count = self.channels.len() as u64;
        let out = self.batch.answer();
        encode::array(out, 3);
        encode::bulk(out, what.as_bytes());
        match channel {
            Some(channel) => encode::bulk(out, channel),
            None => encode::nil(out),
        }
        encode::integer(out, count);
    }
}
