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
    store::{CommitListener, ReadLimit, ReadResult},
};

/// Delay of a report, so that later changes of the same user are written with it.
const REPORT_DELAY: Duration = Duration::from_millis(20);

/// Reports in flight at once. With more the last of them would exceed the reply timeout.
const REPORTS_IN_FLIGHT_MAX: usize = 256;

/// Interval of the expiry of due users.
pub(super) const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Users expired in one pass.
const EXPIRED_USERS_MAX: usize = 100;

/// State that callers and background tasks share.
pub(in crate::redis) struct Shared {
    pub(in crate::redis) script_client: ScriptClient,
    pub(super) unflushed: UnflushedReports,
    /// Users whose pending messages of the original exceed their quota: the import is retried.
    pub(in crate::redis) incomplete: Mutex<VecDeque<UserId>>,
    /// Notified when a report is to be written.
    pub(super) dirty: Notify,
    pub(super) listener: RwLock<Option<CommitListener>>,
    pub(super) resync: RwLock<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// Reason why Redis rejected an append for lack of memory, and the key of that log.
    pub(super) full: RwLock<Option<(Arc<str>, String)>>,
    pub(super) closed: RwLock<bool>,
}

/// Writes reports, one pass after the other. A change during a pass is written by the next pass.
pub(super) async fn flush_reports(shared: Weak<Shared>) {
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            _ = tokio::time::timeout(Duration::from_secs(1), shared.dirty.notified()).await;
        }
        tokio::time::sleep(REPORT_DELAY).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.flush_all().await {
            tracing::debug!(%error, "acknowledgements wait until Redis is available again");
            tokio::time::sleep(Duration::from_millis(200)).await;
            shared.dirty.notify_one();
        }
    }
}

/// Expires entries of due users. Also rechecks the memory of Redis and retries incomplete imports.
pub(super) async fn expire_due_users(shared: Weak<Shared>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(shared) = shared.upgrade() else { return };
        let expired = shared.script_client.expire_due(EXPIRED_USERS_MAX).await;
        if let Err(error) = expired.and(shared.recheck_memory().await).and(shared.retry_incomplete_imports().await) {
            tracing::debug!(%error, "no logs were expired; it is retried");
        }
    }
}

impl Shared {
    /// Tells the listener that logs of these users have new entries.
    pub(super) fn notify_appended(&self, users: &[UserId]) {
        if let (Some(listener), false) = (self.listener.read().clone(), users.is_empty()) {
            listener(users);
        }
    }

    /// Writes the reports of all users.
    pub(super) async fn flush_all(&self) -> Result<(), RedisError> {
        let reports = self.unflushed.reports(self.script_client.link()?.uptime());
        // Sent together over one connection.
        let writes = reports.into_iter().map(|(user, report)| self.flush_report(user, report));
        let mut writes = futures_util::stream::iter(writes).buffer_unordered(REPORTS_IN_FLIGHT_MAX);
        while let Some(written) = writes.next().await {
            written?;
        }
        Ok(())
    }

    /// Writes one report. A damaged log is logged, and its report dropped.
    pub(super) async fn flush_report(&self, user: UserId, report: Report) -> Result<(), RedisError> {
        match self.script_client.report(&user, &report).await {
            // An operator must repair this log. Other users do not wait for that.
            Err(RedisError::Damaged(why)) => {
                tracing::error!(user = %excerpt(&user), %why, "the log of this user is damaged: acknowledgements are dropped. Repair or delete its keys");
            }
            written => {
                // Sessions read the log again, and send the gap to their clients.
                if written? {
                    self.notify_appended(std::slice::from_ref(&user));
                }
            }
        }
        self.unflushed.mark_flushed(&user, &report);
        Ok(())
    }

    /// Writes the report of one user, before a query about that user.
    pub(super) async fn flush_user(&self, user: &UserId) -> Result<(), RedisError> {
        match self.unflushed.report(user, self.script_client.link()?.uptime()) {
            Some(report) => self.flush_report(user.clone(), report).await,
            None => Ok(()),
        }
    }

    /// Reads entries, and writes the user's report in the same step if there is one.
    pub(super) async fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, RedisError> {
        let uptime = self.script_client.link()?.uptime();
        let mut report = self.unflushed.report(user, uptime);
        let (found, log_name) = loop {
            let known = self.unflushed.known_log(user);
            match self.script_client.read(user, after, limit, report.as_ref(), &known).await? {
                Some(found) => break found,
                None => report = self.unflushed.complete_report(user, uptime),
            }
        };
        if let Some(report) = report {
            self.unflushed.mark_flushed(user, &report);
        }
        // A caller may read from any sequence above the head.
        let top = if found.through > after { found.through } else { 0 };
        if self.unflushed.set_log(user, log_name, top) {
            self.dirty.notify_one();
        }
        Ok(found)
    }

    /// Checks whether Redis has memory again after it rejected an append. Otherwise a server that gets no dispatches
    /// would report a full store for good.
    pub(super) async fn recheck_memory(&self) -> Result<(), RedisError> {
        let Some((why, key)) = self.full.read().clone() else { return Ok(()) };
        // Redis rejects this command without memory, like every command that may need some. The key is a stream and no
        // list, so the command changes nothing.
        let checked =
            self.script_client.link()?.client().query::<redis::Value>(redis::cmd("LPUSHX").arg(key).arg("")).await;
        match checked {
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
