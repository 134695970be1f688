//! Shared state of the store on Redis, and its background tasks.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::{
    script_client::ScriptClient,
    unflushed::{Report, UnflushedReports},
};
use crate::{
    logging::excerpt,
    message::{Seq, UserId},
    redis::RedisError,
    store::{CommitListener, Found, ReadLimit},
};

/// How long an acknowledgement may wait before it is written.
const NOTE_PAUSE: Duration = Duration::from_millis(20);

/// Reports in flight at once. With more the last one would exceed the reply timeout.
const NOTES_AT_ONCE: usize = 256;

/// How often due users are expired.
pub(super) const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Users expired in one pass.
const SWEPT_MAX: usize = 100;

/// State shared by callers and background tasks.
pub(in crate::redis) struct Shared {
    pub(in crate::redis) caller: ScriptClient,
    pub(super) locals: UnflushedReports,
    /// Users whose log has no room for all that the original has stored for them.
    pub(in crate::redis) owed: Mutex<VecDeque<UserId>>,
    pub(super) dirty: Notify,
    pub(super) listener: RwLock<Option<CommitListener>>,
    pub(super) gap: RwLock<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// Why an append was rejected for lack of memory, and the key that it was for.
    pub(super) full: RwLock<Option<(Arc<str>, String)>>,
    pub(super) closed: RwLock<bool>,
}

/// Writes reports. One pass at a time: later changes go with the next one.
pub(super) async fn flush_reports(shared: Weak<Shared>) {
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            _ = tokio::time::timeout(Duration::from_secs(1), shared.dirty.notified()).await;
        }
        tokio::time::sleep(NOTE_PAUSE).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.note_all().await {
            tracing::debug!(%error, "acknowledgements wait until Redis is available again");
            tokio::time::sleep(Duration::from_millis(200)).await;
            shared.dirty.notify_one();
        }
    }
}

pub(super) async fn keep_sweeping(shared: Weak<Shared>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else { return };
        let swept = shared.caller.sweep(SWEPT_MAX).await;
        if let Err(error) = swept.and(shared.look_for_room().await).and(shared.take_what_is_owed().await) {
            tracing::debug!(%error, "no logs were expired; it is retried");
        }
    }
}

impl Shared {
    pub(super) fn woken(&self, users: &[UserId]) {
        if let (Some(listener), false) = (self.listener.read().clone(), users.is_empty()) {
            listener(users);
        }
    }

    /// Writes the reports of all users.
    pub(super) async fn note_all(&self) -> Result<(), RedisError> {
        let reports = self.locals.reports(self.caller.link()?.uptime());
        // They share a connection, and so are sent together.
        let noting = reports.into_iter().map(|(user, report)| self.note(user, report));
        let mut noting = futures_util::stream::iter(noting).buffer_unordered(NOTES_AT_ONCE);
        while let Some(noted) = noting.next().await {
            noted?;
        }
        Ok(())
    }

    pub(super) async fn note(&self, user: UserId, report: Report) -> Result<(), RedisError> {
        match self.caller.note(&user, &report).await {
            // An operator must repair this log. Other users do not wait for that.
            Err(RedisError::Damaged(why)) => {
                tracing::error!(user = %excerpt(&user), %why, "the log of this user is damaged: acknowledgements are dropped. Repair or delete its keys");
            }
            noted => {
                // Its clients learn of the gap.
                if noted? {
                    self.woken(std::slice::from_ref(&user));
                }
            }
        }
        self.locals.said(&user, &report);
        Ok(())
    }

    /// Writes the report of one user, before a query about that user.
    pub(super) async fn settle(&self, user: &UserId) -> Result<(), RedisError> {
        match self.locals.report(user, self.caller.link()?.uptime()) {
            Some(report) => self.note(user.clone(), report).await,
            None => Ok(()),
        }
    }

    pub(super) async fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, RedisError> {
        let uptime = self.caller.link()?.uptime();
        let mut report = self.locals.report(user, uptime);
        let (found, era) = loop {
            let known = self.locals.known(user);
            match self.caller.read(user, after, limit, report.as_ref(), &known).await? {
                Some(found) => break found,
                None => report = self.locals.whole(user, uptime),
            }
        };
        if let Some(report) = report {
            self.locals.said(user, &report);
        }
        // A caller may read from any sequence above the head.
        let top = if found.through > after { found.through } else { 0 };
        if self.locals.entered(user, era, top) {
            self.dirty.notify_one();
        }
        Ok(found)
    }

    /// Checks whether Redis has memory again after an append was rejected. Otherwise a backend that sends nothing to a full
    /// server would never see it recover.
    pub(super) async fn look_for_room(&self) -> Result<(), RedisError> {
        let Some((why, key)) = self.full.read().clone() else { return Ok(()) };
        // Rejected without memory like every command that may need some. The key is a stream and no list, so the command
        // changes nothing.
        let asked = self.caller.link()?.client().query::<redis::Value>(redis::cmd("LPUSHX").arg(key).arg("")).await;
        match asked {
            Ok(_) | Err(RedisError::Damaged(_)) => {
                // Unless another append was rejected meanwhile.
                let mut full = self.full.write();
                if full.as_ref().is_some_and(|(now, _)| Arc::ptr_eq(now, &why)) {
                    *full = None;
                }
                Ok(())
            }
            Err(RedisError::Full(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
