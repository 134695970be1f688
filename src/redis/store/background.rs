//! State of the store on Redis, and its background tasks.

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

/// How long a receipt may wait before it is written down.
const NOTE_PAUSE: Duration = Duration::from_millis(20);

/// Users whose receipts are on their way at once. More would make the last of them wait for longer than a reply is waited for.
const NOTES_AT_ONCE: usize = 256;

/// Between two looks for users of whom something has become too old.
pub(super) const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Users looked after in one go.
const SWEPT_MAX: usize = 100;

/// What the callers and the line's own tasks share.
pub(in crate::redis) struct Shared {
    pub(in crate::redis) caller: ScriptClient,
    pub(super) locals: UnflushedReports,
    /// Who has no room for all that stock has left for him.
    pub(in crate::redis) owed: Mutex<VecDeque<UserId>>,
    pub(super) dirty: Notify,
    pub(super) listener: RwLock<Option<CommitListener>>,
    pub(super) gap: RwLock<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// Why an append was refused for want of room, and the key whose Redis had none.
    pub(super) full: RwLock<Option<(Arc<str>, String)>>,
    pub(super) closed: RwLock<bool>,
}

/// Writes receipts down. One pass at a time: what comes meanwhile is in the next.
pub(super) async fn flush_reports(shared: Weak<Shared>) {
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            _ = tokio::time::timeout(Duration::from_secs(1), shared.dirty.notified()).await;
        }
        tokio::time::sleep(NOTE_PAUSE).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.note_all().await {
            tracing::debug!(%error, "receipts wait until Redis is there again");
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
            tracing::debug!(%error, "nothing was looked after");
        }
    }
}

impl Shared {
    pub(super) fn woken(&self, users: &[UserId]) {
        if let (Some(listener), false) = (self.listener.read().clone(), users.is_empty()) {
            listener(users);
        }
    }

    /// Writes down what this server has to say of everybody.
    pub(super) async fn note_all(&self) -> Result<(), RedisError> {
        let reports = self.locals.reports(self.caller.link()?.uptime());
        // They share a line, and so go out together.
        let noting = reports.into_iter().map(|(user, report)| self.note(user, report));
        let mut noting = futures_util::stream::iter(noting).buffer_unordered(NOTES_AT_ONCE);
        while let Some(noted) = noting.next().await {
            noted?;
        }
        Ok(())
    }

    pub(super) async fn note(&self, user: UserId, report: Report) -> Result<(), RedisError> {
        match self.caller.note(&user, &report).await {
            // Somebody has to look at this log; nobody else is to wait for that.
            Err(RedisError::Damaged(why)) => {
                tracing::error!(user = %excerpt(&user), %why, "receipts of this user cannot be written down");
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

    /// Writes down what this server has to say of one user, before something is asked about him.
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
        // Beyond the head a caller may ask for anything.
        let top = if found.through > after { found.through } else { 0 };
        if self.locals.entered(user, era, top) {
            self.dirty.notify_one();
        }
        Ok(found)
    }

    /// Looks whether there is room again where an append found none: whoever sends nothing to one that says it is full must see
    /// that it is not any more.
    pub(super) async fn look_for_room(&self) -> Result<(), RedisError> {
        let Some((why, key)) = self.full.read().clone() else { return Ok(()) };
        // Refused without room like every command that may need some; and at the key of a log, which is no list, it does nothing.
        let asked = self.caller.link()?.client().query::<redis::Value>(redis::cmd("LPUSHX").arg(key).arg("")).await;
        match asked {
            Ok(_) | Err(RedisError::Damaged(_)) => {
                // Unless it was found full once more meanwhile.
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
