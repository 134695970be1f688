//! Appends entries in steps of bounded size. An append with an id is idempotent.

use std::{
    collections::{HashMap, HashSet},
    sync::Weak,
    time::Duration,
};

use redis::Value;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{
    background::Shared,
    replies::integer,
    script_client::{Arguments, encode_report, text},
    scripts,
    unflushed::Report,
};
use crate::{
    message::{Seq, UserId},
    redis::RedisError,
    store::{Append, AppendResult, DispatchSummary, Idempotency, Rejected, RejectionReason},
    util::millis::millis,
};

/// Entries of one step, so that no other client of Redis waits long.
pub const ENTRIES_MAX: usize = 500;

/// Bytes of payload of one step, with at least one entry.
const STEP_BYTES_MAX: usize = 4 << 20;

/// How long the id of a message from the original is stored for each user: see [`Append::per_recipient_id`].
const COPY_TTL: Duration = Duration::from_secs(600);

/// One entry to append: index of the append, and its user.
type EntryToAppend = (usize, UserId);

/// Result of one entry.
#[derive(Clone, Copy, Debug)]
struct AppendedEntry {
    seq: Result<Seq, RejectionReason>,
    dropped: u64,
    due: i64,
    not_indexed: bool,
}

/// Result of a dispatch, as stored for retries.
#[derive(Debug, Serialize, Deserialize)]
struct StoredResult {
    at_ms: u64,
    recipients: u32,
    online: u32,
    offline: u32,
    /// `None` if an earlier version of the server stored the result.
    #[serde(default)]
    stored: Option<u32>,
    rejected: Vec<(String, u8)>,
}

/// Queued appends, and the channel for their results. An empty list waits for all appends before it.
pub(super) type QueuedAppends = (Vec<Append>, oneshot::Sender<Vec<Result<AppendResult, RedisError>>>);

/// Callers whose appends make one batch.
const BATCH_MAX: usize = 256;

/// Makes appends in the order of the queue, one batch after the other.
pub(super) async fn run_appends(shared: Weak<Shared>, queue: &mut mpsc::Receiver<QueuedAppends>) {
    let mut queued: Vec<QueuedAppends> = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut queued, BATCH_MAX).await > 0 {
        let Some(shared) = shared.upgrade() else { return };
        let mut all = Vec::with_capacity(queued.len());
        let callers: Vec<_> = queued
            .drain(..)
            .map(|(appends, done)| {
                let count = appends.len();
                all.extend(appends);
                (count, done)
            })
            .collect();
        let mut results = shared.append_all(all).await.into_iter();
        for (count, done) in callers {
            // The caller may no longer wait.
            _ = done.send(results.by_ref().take(count).collect());
        }
    }
}

impl Shared {
    /// Makes appends like [`Store::append_all`](crate::store::Store::append_all), with a result or an error for each.
    pub(in crate::redis) async fn append_all(&self, appends: Vec<Append>) -> Vec<Result<AppendResult, RedisError>> {
        let mut appended: Vec<Result<AppendResult, RedisError>> = vec![Ok(AppendResult::default()); appends.len()];
        let mut entries: Vec<EntryToAppend> = Vec::new();
        for (at, append) in appends.iter().enumerate() {
            let Some(idempotency) = &append.idempotency else {
                entries.extend(append.recipients.iter().map(|user| (at, user.clone())));
                continue;
            };
            // Earlier appends keep their order.
            self.append_entries(&appends, std::mem::take(&mut entries), &mut appended).await;
            match self.stored_result(idempotency).await {
                Ok(None) => {
                    let entries = append.recipients.iter().map(|user| (at, user.clone())).collect();
                    self.append_entries(&appends, entries, &mut appended).await;
                    if let Ok(results) = &mut appended[at] {
                        appended[at] =
                            self.store_result(idempotency, &append.recipients, std::mem::take(results)).await;
                    }
                }
                Ok(Some(answered)) => appended[at] = Ok(answered),
                Err(error) => appended[at] = Err(error),
            }
        }
        self.append_entries(&appends, entries, &mut appended).await;
        appended
    }

    /// Appends entries step by step, and records their results.
    async fn append_entries(
        &self,
        appends: &[Append],
        entries: Vec<EntryToAppend>,
        appended: &mut [Result<AppendResult, RedisError>],
    ) {
        let is_cluster = self.script_client.link().is_ok_and(|link| link.client().is_redis_cluster());
        let mut remaining = &entries[..];
        while !remaining.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for (at, _) in remaining {
                let size = appends[*at].payload.as_bytes().len();
                if count > 0 && (is_cluster || count >= ENTRIES_MAX || bytes + size > STEP_BYTES_MAX) {
                    break;
                }
                (count, bytes) = (count + 1, bytes + size);
            }
            let (now, later) = remaining.split_at(count);
            remaining = later;
            let results = self.append_batch(appends, now).await;
            // Sessions of these users read their logs, even if the step may not have been done.
            let mut users: Vec<UserId> = now.iter().map(|(_, user)| user.clone()).collect();
            users.sort_unstable();
            users.dedup();
            self.notify_appended(&users);
            match results {
                Ok(results) => {
                    for ((at, _), results) in now.iter().zip(results) {
                        let Ok(append) = &mut appended[*at] else { continue };
                        append.seqs.push(results.seq);
                        append.dropped += results.dropped;
                    }
                }
                Err(error) => {
                    if let (RedisError::Full(why), Ok(link)) = (&error, self.script_client.link()) {
                        *self.full.write() = Some((why.clone(), link.keys().log(now[0].1.as_str())));
                    }
                    now.iter().for_each(|(at, _)| appended[*at] = Err(error.clone()));
                }
            }
        }
    }

    /// Appends entries in one step, with the reports on their users. Updates the indexes.
    async fn append_batch(
        &self,
        appends: &[Append],
        entries: &[EntryToAppend],
    ) -> Result<Vec<AppendedEntry>, RedisError> {
        // The same step writes the reports on these users: acknowledgements free quota.
        let uptime = self.script_client.link()?.uptime();
        let mut reports: HashMap<&UserId, Report> = HashMap::new();
        for (_, user) in entries {
            if !reports.contains_key(user)
                && let Some(report) = self.unflushed.report(user, uptime)
            {
                reports.insert(user, report);
            }
        }
        let results = self.step(appends, entries, &reports).await?;
        for ((_, user), results) in entries.iter().zip(&results) {
            // A damaged log stores no report. `flush_report` logs that.
            if results.seq != Err(RejectionReason::Damaged)
                && let Some(report) = reports.remove(user)
            {
                self.unflushed.mark_flushed(user, &report);
            }
        }
        for ((_, user), results) in entries.iter().zip(&results) {
            self.script_client.update_indexes(user, results.due, results.not_indexed).await?;
        }
        Ok(results)
    }

    /// Runs the script that appends entries.
    async fn step(
        &self,
        appends: &[Append],
        entries: &[EntryToAppend],
        reports: &HashMap<&UserId, Report>,
    ) -> Result<Vec<AppendedEntry>, RedisError> {
        let link = self.script_client.link()?;
        let (mut messages, mut items, mut keys): (Arguments, Arguments, Vec<String>) = Default::default();
        let (mut count, mut last, mut reported) = (0_usize, None, HashSet::new());
        for (at, user) in entries {
            let append = &appends[*at];
            let id = append
                .idempotency
                .as_ref()
                .map(|idempotency| &idempotency.id)
                .or(append.per_recipient_id.as_ref())
                .map_or("", |id| id.as_str());
            if last != Some(*at) {
                (count, last) = (count + 1, Some(*at));
                messages.push(append.payload.as_bytes().clone());
                // 0 would mean no TTL.
                messages.push(text(append.ttl.map_or(0, |ttl| ttl.as_millis().clamp(1, 1 << 50))));
                messages.push(text(append.collapse.as_ref().map_or("", |key| key.as_str())));
                messages.push(text(id));
                messages.push(text(if append.idempotency.is_some() { 0 } else { COPY_TTL.as_millis() }));
            }
            // One report for each user.
            let report = reports.get(user).filter(|_| reported.insert(user));
            items.extend([text(count), text(user), report.map(encode_report).unwrap_or_default()]);
            let schema = link.keys();
            let (user, is_idempotent) = (user.as_str(), append.idempotency.is_some());
            let state = schema.state(user);
            let dedup_entry = match (id, is_idempotent) {
                // An existing key: in a Redis Cluster a step waits for a missing key while its slot moves.
                ("", _) => state.clone(),
                (id, true) => schema.dedup_entry(user, id),
                (id, false) => schema.delivered_copy(user, id),
            };
            keys.extend([state, schema.log(user), dedup_entry]);
        }
        let mut arguments = vec![text(count)];
        arguments.extend(messages);
        arguments.extend(items);
        let epoch = link.membership().epoch_id();
        let mut reply = self.script_client.step(&scripts::APPEND, keys, arguments).await?;
        if let Some(Value::Int(steps)) = reply.pop() {
            link.record_appends(&epoch, steps.unsigned_abs());
        }
        let results = |parts: &[Value]| {
            let (due, not_indexed) = (integer(parts, 2)?, integer(parts, 3)? == 1);
            let seq = match integer(parts, 0)? {
                0 => Err(RejectionReason::Quota),
                ..0 => Err(RejectionReason::Damaged),
                seq => {
                    link.record_sequence(seq.unsigned_abs());
                    Ok(seq.unsigned_abs())
                }
            };
            Ok(AppendedEntry { seq, dropped: integer(parts, 1)?.unsigned_abs(), due, not_indexed })
        };
        reply.chunks(4).map(results).collect()
    }

    async fn now_ms(&self) -> Result<u64, RedisError> {
        let link = self.script_client.link()?;
        let (seconds, micros): (u64, u64) = link.client().query(&redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000 + link.ahead_ms())
    }

    /// Returns the stored result of an earlier append with the same id.
    async fn stored_result(&self, idempotency: &Idempotency) -> Result<Option<AppendResult>, RedisError> {
        let link = self.script_client.link()?;
        let key = link.keys().dispatch_result(idempotency.id.as_str());
        let stored: Option<Vec<u8>> = link.client().query(redis::cmd("GET").arg(key)).await?;
        let Some(Ok(stored)) = stored.map(|stored| serde_json::from_slice::<StoredResult>(&stored)) else {
            return Ok(None);
        };
        let window_ms = millis(self.script_client.limits().ids_window);
        if stored.at_ms.saturating_add(window_ms) <= self.now_ms().await? {
            return Ok(None);
        }
        let rejected = stored.rejected.into_iter();
        let summary = DispatchSummary {
            recipients: stored.recipients,
            online: stored.online,
            offline: stored.offline,
            // Mostly the message was stored for every counted recipient.
            stored: stored.stored.unwrap_or_else(|| stored.online.saturating_add(stored.offline)),
            rejected: rejected
                .map(|(user, reason)| Rejected {
                    user: user.into(),
                    reason: RejectionReason::from_stored(reason).unwrap_or(RejectionReason::Invalid),
                })
                .collect(),
        };
        Ok(Some(AppendResult { summary: Some(summary), duplicate: true, ..AppendResult::default() }))
    }

    /// Stores the result of an append with an id. Returns the first result if another server has stored one meanwhile.
    async fn store_result(
        &self,
        idempotency: &Idempotency,
        recipients: &[UserId],
        results: AppendResult,
    ) -> Result<AppendResult, RedisError> {
        let accepted = |at: usize| results.seqs.get(at).is_none_or(Result::is_ok);
        let count = |online: bool| {
            idempotency
                .online
                .iter()
                .enumerate()
                .filter(|(at, is_online)| **is_online == online && accepted(*at))
                .count()
        };
        let rejected = recipients
            .iter()
            .zip(&results.seqs)
            .filter_map(|(user, seq)| Some(Rejected::new(user.as_str(), seq.err()?)));
        let summary = DispatchSummary {
            recipients: (idempotency.online.len() + idempotency.rejected.len()) as u32,
            online: count(true) as u32,
            offline: count(false) as u32,
            stored: results.seqs.iter().filter(|seq| seq.is_ok()).count() as u32,
            rejected: idempotency
                .rejected
                .iter()
                .map(|rejected| Rejected::new(&rejected.user, rejected.reason))
                .chain(rejected)
                .collect(),
        };
        let stored = StoredResult {
            at_ms: self.now_ms().await?,
            recipients: summary.recipients,
            online: summary.online,
            offline: summary.offline,
            stored: Some(summary.stored),
            rejected: summary
                .rejected
                .iter()
                .map(|rejected| (rejected.user.to_string(), rejected.reason as u8))
                .collect(),
        };
        let stored = serde_json::to_string(&stored).map_err(|error| RedisError::Refused(error.to_string().into()))?;
        let link = self.script_client.link()?;
        let window_ms = self.script_client.limits().ids_window.as_millis().clamp(1, 1 << 50).to_string();
        // The entries are stored, so the dispatch is answered even if they used up the memory.
        let (key, set) = (link.keys().dispatch_result(idempotency.id.as_str()), [&stored, "PX", &window_ms, "NX"]);
        let first: Option<String> = link.client().query_when_full("SET", &key, &set).await?;
        if first.is_none() {
            // Another server received the same dispatch at the same time, and stored its result first.
            if let Some(answered) = self.stored_result(idempotency).await? {
                return Ok(answered);
            }
            let () = link.client().query_when_full("SET", &key, &set[..3]).await?;
        }
        Ok(AppendResult { summary: Some(summary), ..results })
    }
}
