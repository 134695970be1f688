//! Shares the pool of portals of all servers, also the original's, and publishes events to it.
//!
//! In the original's pool (`available_portals_pool`) a portal of ours has the name `SERVER.PORTAL`, so that a dead
//! server's portals can be removed. Events are published on the original's channel (`portal`). A server skips its own
//! events there, since it has dispatched them to its local portals before.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::portal_event_codec::{self, ReceivedEvent};
use crate::{
    cluster::portals::{ClientEvent, LocalPortals, PortalTarget, RemotePortals},
    compat::{keyspace::Name, portal::PortalAnnouncement},
    logging::json_error,
    redis::{RedisError, Script, ServerLink, subscriber},
};

/// Queued events, and their approximate bytes. One more is lost for other servers, and logged.
const QUEUE_MAX: usize = 8192;
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Events published in one batch.
const BATCH_MAX: usize = 64;

/// Limit of known remote portals. Further portals get no turns for events of this server.
const REMOTE_MAX: usize = 1024;

/// Interval at which the pool is read, whatever was received.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which an announcement overrides the pool: a portal of the original announces itself before it joins the
/// pool.
const ANNOUNCEMENT_TTL: Duration = Duration::from_secs(5);

/// Delay after a failed attempt.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Adds or removes a portal, and announces that if the pool has changed.
///
/// KEYS: 1 the pool, also its channel; ARGV: 1 SADD or SREM, 2 the portal, 3 the announcement. When an unknown portal
/// is announced as removed, a server of the original removes another one.
static CHANGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local changed = redis.call(ARGV[1], KEYS[1], ARGV[2])
        if changed == 1 then redis.call('PUBLISH', KEYS[1], ARGV[3]) end
        return changed",
    )
});

/// The portals of all servers.
#[derive(Debug)]
pub(in crate::redis) struct Portals {
    server: Arc<str>,
    events: mpsc::Sender<Vec<u8>>,
    queued_bytes: Arc<AtomicUsize>,
    /// Publishes of the link that are queued or in flight, these events among them.
    pending_publishes: Arc<watch::Sender<usize>>,
    /// An event was lost, and logged. Cleared when a publish succeeds.
    loss_logged: Arc<AtomicBool>,
    state: Mutex<State>,
    /// A portal of this server receives all events. Atomic, because callers set it while they hold locks.
    wants_all: AtomicBool,
    /// Arguments of the last call of [`LocalPortals::set_remote`]. Locked during the call, so that calls keep their
    /// order.
    reported: Mutex<(Vec<Arc<str>>, bool)>,
    changed: Notify,
    poll_now: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Portals of this server that take turns.
    local: HashSet<String>,
    /// Unwritten changes of local portals: whether the portal is present.
    dirty: HashMap<String, bool>,
    wants_all_written: Option<bool>,
    /// Portals of other servers in the pool, as last read.
    pool: HashSet<Arc<str>>,
    /// Announcements of the last 5 s: whether the portal is present, and when it was announced.
    announced: HashMap<Arc<str>, (bool, Instant)>,
    /// A portal of another server receives all events.
    remote_wants_all: bool,
    /// The original's channel has a subscriber.
    original_listens: bool,
    /// The subscription is lost for now.
    unsubscribed: bool,
}

impl State {
    /// Returns the remote portals that take turns, and whether a remote portal receives all events.
    fn remote(&mut self, live: &str) -> (Vec<Arc<str>>, bool) {
        if self.unsubscribed {
            return (Vec::new(), false);
        }
        self.expire_announcements(Instant::now());
        let announced = self.announced.iter().filter(|(id, (is_present, _))| *is_present && !self.pool.contains(*id));
        let all = self.pool.iter().chain(announced.map(|(id, _)| id));
        let is_active = |id: &&Arc<str>| match (self.announced.get(*id), split_own_name(id)) {
            (Some((is_present, _)), _) => *is_present,
            (None, Some((server, _))) => live.split(',').any(|name| name == server),
            (None, None) => self.original_listens,
        };
        let mut all: Vec<Arc<str>> = all.filter(is_active).cloned().collect();
        // Any portal of the original may be configured to receive all events.
        let wants_all = self.remote_wants_all || all.iter().any(|id| split_own_name(id).is_none());
        all.sort_unstable();
        all.truncate(REMOTE_MAX);
        (all, wants_all)
    }

    fn expire_announcements(&mut self, now: Instant) {
        self.announced.retain(|_, (_, at)| now.saturating_duration_since(*at) < ANNOUNCEMENT_TTL);
    }

    /// Records an announcement.
    ///
    /// At the limit only known portals are updated. The next read of the pool finds the others.
    fn announce(&mut self, id: &str, is_present: bool, now: Instant) {
        self.expire_announcements(now);
        if let Some(known) = self.announced.get_mut(id) {
            *known = (is_present, now);
        } else if self.announced.len() < REMOTE_MAX {
            self.announced.insert(id.into(), (is_present, now));
        }
    }
}

/// Splits the name of a portal of ours into server and portal. `None` for a portal of the original.
fn split_own_name(id: &str) -> Option<(&str, &str)> {
    let (server, portal) = id.split_once('.')?;
    let (time, random) = server.split_once('-')?;
    let is_server = !time.is_empty()
        && time.bytes().all(|byte| byte.is_ascii_digit())
        && random.len() == 16
        && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_server.then_some((server, portal))
}

impl Portals {
    /// Starts the tasks that publish, write, read and subscribe.
    pub(in crate::redis) fn begin(link: &Arc<ServerLink>, local: Weak<dyn LocalPortals>) -> Arc<Self> {
        let (events, queue) = mpsc::channel(QUEUE_MAX);
        let portals = Arc::new(Self {
            server: link.server_name().into(),
            events,
            queued_bytes: Arc::default(),
            pending_publishes: link.pending_publishes.clone(),
            loss_logged: Arc::default(),
            state: Mutex::new(State { unsubscribed: true, ..State::default() }),
            wants_all: AtomicBool::new(false),
            reported: Mutex::default(),
            changed: Notify::new(),
            poll_now: Notify::new(),
        });
        let (bytes, full) = (portals.queued_bytes.clone(), portals.loss_logged.clone());
        link.spawn("cluster_portal_events", queue, move |link, queue| {
            Box::pin(publish_events(link, queue, bytes.clone(), full.clone()))
        });
        link.spawn("cluster_portal_writer", portals.clone(), |link, portals| {
            Box::pin(write_changes(link, portals.clone()))
        });
        let to = local.clone();
        link.spawn("cluster_portal_reader", portals.clone(), move |link, portals| {
            Box::pin(poll_redis(link, portals.clone(), to.clone()))
        });
        link.spawn("cluster_portal_subscriber", portals.clone(), move |link, portals| {
            Box::pin(handle_subscription(link, portals.clone(), local.clone()))
        });
        portals
    }

    fn set_local(&self, portal: &str, is_present: bool) {
        {
            let mut state = self.state.lock();
            let name = format!("{}.{portal}", self.server);
            if is_present {
                state.local.insert(name.clone());
            } else {
                state.local.remove(&name);
            }
            state.dirty.insert(name, is_present);
        }
        self.changed.notify_one();
    }

    /// Reports the remote portals if they have changed.
    fn report_remote(&self, link: &ServerLink, local: &Weak<dyn LocalPortals>) {
        let Some(local) = local.upgrade() else { return };
        let live = link.membership();
        let mut reported = self.reported.lock();
        let now = self.state.lock().remote(&live.servers);
        if *reported != now {
            *reported = now;
            local.set_remote(&reported.0, reported.1);
        }
    }

    /// Reads the pool, and marks differences of this server's entries to be written.
    async fn poll(&self, link: &ServerLink, local: &Weak<dyn LocalPortals>) -> Result<(), RedisError> {
        let (keys, client) = (link.keys(), link.client());
        let pool: Vec<String> = client.query(redis::cmd("SMEMBERS").arg(keys.original(Name::Pool))).await?;
        let wanting_all: Vec<String> = client.query(redis::cmd("SMEMBERS").arg(keys.event_subscribers())).await?;
        let original_listens = if client.is_redis_cluster() {
            // NUMSUB counts the subscribers of one server only.
            true
        } else {
            let command = redis::cmd("PUBSUB").arg("NUMSUB").arg(keys.original(Name::Portal)).to_owned();
            let (_, count): (String, u64) = client.query(&command).await?;
            count > 0
        };
        {
            let mut state = self.state.lock();
            let own = |id: &str| split_own_name(id).is_some_and(|(server, _)| server == &*self.server);
            let (mine, others): (Vec<String>, Vec<String>) = pool.into_iter().partition(|id| own(id));
            let State { local, dirty, .. } = &mut *state;
            for removed in mine.iter().filter(|id| !local.contains(*id)) {
                dirty.entry(removed.clone()).or_insert(false);
            }
            for missing in local.iter().filter(|id| !mine.contains(id)) {
                dirty.entry(missing.clone()).or_insert(true);
            }
            if wanting_all.iter().any(|server| *server == *self.server) != self.wants_all.load(Ordering::Acquire) {
                state.wants_all_written = None;
            }
            state.pool = others.into_iter().map(Into::into).collect();
            state.remote_wants_all = wanting_all.iter().any(|server| *server != *self.server);
            state.original_listens = original_listens;
            if !state.dirty.is_empty() || state.wants_all_written.is_none() {
                self.changed.notify_one();
            }
        }
        self.report_remote(link, local);
        Ok(())
    }

    async fn write(&self, link: &ServerLink) -> Result<(), RedisError> {
        loop {
            let wanted = self.wants_all.load(Ordering::Acquire);
            let (next, wants_all) = {
                let mut state = self.state.lock();
                let name = state.dirty.keys().next().cloned();
                let next = name.and_then(|name| state.dirty.remove_entry(&name));
                let wants_all = (state.wants_all_written != Some(wanted)).then_some(wanted);
                (next, wants_all)
            };
            if let Some((portal, is_present)) = next {
                if let Err(error) = change_pool(link, &portal, is_present).await {
                    // Unless there is a later change.
                    self.state.lock().dirty.entry(portal).or_insert(is_present);
                    return Err(error);
                }
            } else if let Some(wants_all) = wants_all {
                write_wants_all(link, &self.server, wants_all).await?;
                self.state.lock().wants_all_written = Some(wants_all);
            } else {
                return Ok(());
            }
        }
    }

    /// Delivers an event of another server.
    fn receive_event(&self, payload: &[u8], local: &Weak<dyn LocalPortals>) {
        let (Some(ReceivedEvent { event, portal, is_redispatch }), Some(local)) =
            (portal_event_codec::decode(payload, &self.server), local.upgrade())
        else {
            return;
        };
        let portal = portal.as_deref().and_then(split_own_name).filter(|(server, _)| *server == &*self.server);
        local.deliver(event, portal.map(|(_, portal)| portal), is_redispatch);
    }

    fn receive_announcement(&self, payload: &[u8]) {
        let Ok(PortalAnnouncement { id, ready }) = serde_json::from_slice::<PortalAnnouncement<'_>>(payload).inspect_err(
            |error| tracing::warn!(error = %json_error(error), "a message on the channel of portals is malformed and ignored"),
        ) else {
            return;
        };
        if split_own_name(&id).is_none_or(|(server, _)| server != &*self.server) {
            self.state.lock().announce(&id, ready, Instant::now());
        }
    }
}

async fn change_pool(link: &ServerLink, portal: &str, is_present: bool) -> Result<(), RedisError> {
    let announcement = serde_json::json!({ "id": portal, "ready": is_present }).to_string();
    let arguments = [if is_present { "SADD" } else { "SREM" }, portal, &announcement];
    link.client().run_script(&CHANGE, &[link.keys().original(Name::Pool)], &arguments).await
}

async fn write_wants_all(link: &ServerLink, server: &str, wants_all: bool) -> Result<(), RedisError> {
    let keys = link.keys();
    let command = if wants_all { "SADD" } else { "SREM" };
    link.client().query::<redis::Value>(redis::cmd(command).arg(keys.event_subscribers()).arg(server)).await?;
    link.client().query::<redis::Value>(redis::cmd("PUBLISH").arg(keys.event_subscribers()).arg(server)).await?;
    Ok(())
}

/// Removes the portals of a dead server. Idempotent.
pub(in crate::redis) async fn remove_server(link: &ServerLink, server: &str) -> Result<(), RedisError> {
    let pool = link.keys().original(Name::Pool);
    let all: Vec<String> = link.client().query(redis::cmd("SMEMBERS").arg(pool)).await?;
    for portal in all.iter().filter(|id| split_own_name(id).is_some_and(|(owner, _)| owner == server)) {
        change_pool(link, portal, false).await?;
    }
    link.client()
        .query::<redis::Value>(redis::cmd("SREM").arg(link.keys().event_subscribers()).arg(server))
        .await
        .map(|_| ())
}

async fn publish_events(
    link: Weak<ServerLink>,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
    loss_logged: Arc<AtomicBool>,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let Some(link) = link.upgrade() else { return };
        let channel = link.keys().original(Name::Portal);
        // Uncounted in one step, so that no bytes stay counted after a panic.
        bytes.fetch_sub(batch.iter().map(Vec::len).sum(), Ordering::Relaxed);
        let publish = async |text: Vec<u8>| {
            link.client().query::<redis::Value>(redis::cmd("PUBLISH").arg(&channel).arg(text)).await
        };
        // One connection keeps their order.
        let published = futures_util::future::join_all(batch.drain(..).map(publish)).await;
        link.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= published.len());
        match published.into_iter().find(Result::is_err) {
            None => loss_logged.store(false, Ordering::Relaxed),
            Some(Err(error)) if !loss_logged.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "portal events to other servers failed and are lost");
            }
            Some(_) => {}
        }
    }
}

async fn write_changes(link: Weak<ServerLink>, portals: Arc<Portals>) {
    loop {
        portals.changed.notified().await;
        let Some(link) = link.upgrade() else { return };
        if let Err(error) = portals.write(&link).await {
            tracing::debug!(%error, "local portals are written later");
            tokio::time::sleep(RETRY_DELAY).await;
            portals.changed.notify_one();
        }
    }
}

async fn poll_redis(link: Weak<ServerLink>, portals: Arc<Portals>, local: Weak<dyn LocalPortals>) {
    loop {
        _ = tokio::time::timeout(POLL_INTERVAL, portals.poll_now.notified()).await;
        let Some(link) = link.upgrade() else { return };
        if let Err(error) = portals.poll(&link, &local).await {
            tracing::debug!(%error, "the portal pool was not read; it is retried");
        }
    }
}

async fn handle_subscription(link: Weak<ServerLink>, portals: Arc<Portals>, local: Weak<dyn LocalPortals>) {
    let Some(link_now) = link.upgrade() else { return };
    let channels = [link_now.keys().original(Name::Pool), link_now.keys().event_subscribers()];
    // Subscribed as a pattern, so that NUMSUB of that channel counts only the original's portals.
    let events = link_now.keys().original(Name::Portal);
    drop(link_now);
    let (pool, event_channel) = (&channels[0], &events);
    subscriber::subscribe(link, &channels, &events, subscriber::Loopback::Other, |link, event| {
        match event {
            subscriber::SubscriptionEvent::Started => {
                portals.state.lock().unsubscribed = false;
                portals.poll_now.notify_one();
            }
            subscriber::SubscriptionEvent::Lost => {
                portals.state.lock().unsubscribed = true;
                portals.report_remote(link, &local);
            }
            subscriber::SubscriptionEvent::Message(channel, payload) if channel == event_channel => {
                portals.receive_event(payload, &local);
            }
            subscriber::SubscriptionEvent::Message(channel, payload) if channel == pool => {
                portals.receive_announcement(payload);
                portals.report_remote(link, &local);
            }
            subscriber::SubscriptionEvent::Message(..) => portals.poll_now.notify_one(),
        }
        false
    })
    .await;
}

impl RemotePortals for Portals {
    fn server(&self) -> Arc<str> {
        self.server.clone()
    }

    fn add(&self, portal: &str) {
        self.set_local(portal, true);
    }

    fn remove(&self, portal: &str) {
        self.set_local(portal, false);
    }

    fn set_wants_all(&self, wants_all: bool) {
        if self.wants_all.swap(wants_all, Ordering::AcqRel) != wants_all {
            self.changed.notify_one();
        }
    }

    fn publish(&self, event: &Arc<ClientEvent>, to: PortalTarget<'_>, is_redispatch: bool) {
        let text = portal_event_codec::encode(event, to, &self.server, is_redispatch);
        let bytes = text.len();
        let fits = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX;
        self.pending_publishes.send_modify(|pending_publishes| *pending_publishes += 1);
        if !fits || self.events.try_send(text).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= 1);
            if !self.loss_logged.swap(true, Ordering::Relaxed) {
                tracing::warn!("the queue of portal events to other servers is full: events are lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_of_known_portal_counts_at_the_limit() {
        let (mut state, now) = (State { original_listens: true, ..State::default() }, Instant::now());
        (0..=REMOTE_MAX).for_each(|n| state.announce(&format!("portal-{n:04}"), true, now));
        assert_eq!(state.remote("").0.len(), REMOTE_MAX);
        state.announce("portal-0000", false, now);
        assert!(!state.remote("").0.contains(&"portal-0000".into()), "a portal that leaves gets no more turns");
        let later = now + ANNOUNCEMENT_TTL / 2;
        state.announce("portal-0001", true, later);
        assert_eq!(state.announced["portal-0001"], (true, later), "a repeated announcement counts from now on");
        let expired = now + ANNOUNCEMENT_TTL;
        state.announce("portal-9999", true, expired);
        assert_eq!(state.announced.len(), 2, "expired announcements leave room for new ones");
    }

    #[test]
    fn split_own_name_accepts_only_names_of_our_portals() {
        let server = "1764057612345-0123456789abcdef";
        assert_eq!(split_own_name(&format!("{server}.forwarded-1")), Some((server, "forwarded-1")));
        for original in ["3b241101-e2bb-4255-8caf-4136c566a962", "1-2.3", "", ".", "a-0123456789abcdef.x"] {
            assert_eq!(split_own_name(original), None);
        }
    }
}
