//! Appends: in steps of so many copies, and once where they have an id.

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
    script_client::{Arguments, integer, text, view},
    scripts,
    unflushed::Report,
};
use crate::{
    message::{Seq, UserId},
    redis::RedisError,
    store::{Answered, Append, Appended, Once, Reason, Rejected},
};

/// Copies that one step makes at most, so that no other waits for long.
pub const ITEMS_MAX: usize = 500;

/// Bytes of payload of one step (one copy at least).
const STEP_BYTES_MAX: usize = 4 << 20;

/// For how long it is remembered who has his copy: see [`Append::each_once`].
const COPIED_FOR: Duration = Duration::from_secs(600);

/// One copy: which message, for whom.
type Copied = (usize, UserId);

/// What a copy came to.
#[derive(Clone, Copy, Debug)]
struct Made {
    seq: Result<Seq, Reason>,
    dropped: u64,
    due: i64,
    unknown: bool,
}

/// An answer, as it is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    at_ms: u64,
    recipients: u32,
    online: u32,
    offline: u32,
    /// `None` in what a server without this field has remembered.
    #[serde(default)]
    stored: Option<u32>,
    rejected: Vec<(String, u8)>,
}

/// Appends that wait for their turn, and where their answer is awaited. Without any: whoever asks wants to know that all before
/// it are done.
pub(super) type Waiting = (Vec<Append>, oneshot::Sender<Result<Vec<Appended>, RedisError>>);

/// Askers whose appends are made together.
const TOGETHER_MAX: usize = 256;

/// Makes appends in the order in which they are asked for: all that wait together, and one lot after the other, so that none
/// overtakes another.
pub(super) async fn keep_appending(shared: Weak<Shared>, queue: &mut mpsc::Receiver<Waiting>) {
    let mut waiting: Vec<Waiting> = Vec::with_capacity(TOGETHER_MAX);
    while queue.recv_many(&mut waiting, TOGETHER_MAX).await > 0 {
        let Some(shared) = shared.upgrade() else { return };
        let mut all = Vec::with_capacity(waiting.len());
        let asked: Vec<_> = waiting
            .drain(..)
            .map(|(appends, done)| {
                let count = appends.len();
                all.extend(appends);
                (count, done)
            })
            .collect();
        let mut made = shared.append_all(all).await.into_iter();
        for (count, done) in asked {
            let theirs: Vec<_> = made.by_ref().take(count).collect();
            // Whoever asked may be gone.
            _ = done.send(theirs.into_iter().collect());
        }
    }
}

impl Shared {
    /// See [`Store::append_all`](crate::store::Store::append_all); but for each append whether it was made, since what goes wrong
    /// with one need not concern the others.
    pub(in crate::redis) async fn append_all(&self, appends: Vec<Append>) -> Vec<Result<Appended, RedisError>> {
        let mut appended: Vec<Result<Appended, RedisError>> = vec![Ok(Appended::default()); appends.len()];
        let mut copies: Vec<Copied> = Vec::new();
        for (at, append) in appends.iter().enumerate() {
            let Some(once) = &append.once else {
                copies.extend(append.recipients.iter().map(|user| (at, user.clone())));
                continue;
            };
            // What was asked for before it comes first.
            self.make(&appends, std::mem::take(&mut copies), &mut appended).await;
            match self.answered(once).await {
                Ok(None) => {
                    let copies = append.recipients.iter().map(|user| (at, user.clone())).collect();
                    self.make(&appends, copies, &mut appended).await;
                    if let Ok(made) = &mut appended[at] {
                        appended[at] = self.remember(once, &append.recipients, std::mem::take(made)).await;
                    }
                }
                Ok(Some(answered)) => appended[at] = Ok(answered),
                Err(error) => appended[at] = Err(error),
            }
        }
        self.make(&appends, copies, &mut appended).await;
        appended
    }

    /// Makes the copies, step by step, and puts down what they came to.
    async fn make(&self, appends: &[Append], copies: Vec<Copied>, appended: &mut [Result<Appended, RedisError>]) {
        let spread = self.caller.link().is_ok_and(|link| link.client().is_redis_cluster());
        let mut rest = &copies[..];
        while !rest.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for (at, _) in rest {
                let size = appends[*at].payload.as_bytes().len();
                if count > 0 && (spread || count >= ITEMS_MAX || bytes + size > STEP_BYTES_MAX) {
                    break;
                }
                (count, bytes) = (count + 1, bytes + size);
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            let made = self.make_some(appends, now).await;
            // Whoever was given something is to look, also where nobody knows whether it was.
            let mut woken: Vec<UserId> = now.iter().map(|(_, user)| user.clone()).collect();
            woken.sort_unstable();
            woken.dedup();
            self.woken(&woken);
            match made {
                Ok(made) => {
                    for ((at, _), made) in now.iter().zip(made) {
                        let Ok(one) = &mut appended[*at] else { continue };
                        one.seqs.push(made.seq);
                        one.dropped += made.dropped;
                    }
                }
                Err(error) => {
                    if let (RedisError::Full(why), Ok(link)) = (&error, self.caller.link()) {
                        *self.full.write() = Some((why.clone(), link.keys().log(now[0].1.as_str())));
                    }
                    now.iter().for_each(|(at, _)| appended[*at] = Err(error.clone()));
                }
            }
        }
    }

    async fn make_some(&self, appends: &[Append], copies: &[Copied]) -> Result<Vec<Made>, RedisError> {
        // What is to be said of them is said in the same step: receipts make room.
        let uptime = self.caller.link()?.uptime();
        let mut said: HashMap<&UserId, Report> = HashMap::new();
        for (_, user) in copies {
            if !said.contains_key(user)
                && let Some(report) = self.locals.report(user, uptime)
            {
                said.insert(user, report);
            }
        }
        let made = self.step(appends, copies, &said).await?;
        for ((_, user), made) in copies.iter().zip(&made) {
            // What cannot be read takes note of nothing; that is told where notes are written down.
            if made.seq != Err(Reason::Damaged)
                && let Some(report) = said.remove(user)
            {
                self.locals.said(user, &report);
            }
        }
        for ((_, user), made) in copies.iter().zip(&made) {
            self.caller.listed(user, made.due, made.unknown).await?;
        }
        Ok(made)
    }

    async fn step(
        &self,
        appends: &[Append],
        copies: &[Copied],
        said: &HashMap<&UserId, Report>,
    ) -> Result<Vec<Made>, RedisError> {
        let link = self.caller.link()?;
        let (mut messages, mut items, mut keys): (Arguments, Arguments, Vec<String>) = Default::default();
        let (mut count, mut last, mut told) = (0_usize, None, HashSet::new());
        for (at, user) in copies {
            let append = &appends[*at];
            let id =
                append.once.as_ref().map(|once| &once.id).or(append.each_once.as_ref()).map_or("", |id| id.as_str());
            if last != Some(*at) {
                (count, last) = (count + 1, Some(*at));
                messages.push(append.payload.as_bytes().clone());
                // Less than a millisecond would be none.
                messages.push(text(append.ttl.map_or(0, |ttl| ttl.as_millis().clamp(1, 1 << 50))));
                messages.push(text(append.collapse.as_ref().map_or("", |key| key.as_str())));
                messages.push(text(id));
                messages.push(text(if append.once.is_some() { 0 } else { COPIED_FOR.as_millis() }));
            }
            // Once for each of them.
            let report = said.get(user).filter(|_| told.insert(user));
            items.extend([text(count), text(user), report.map(view).unwrap_or_default()]);
            let names = link.keys();
            let (user, one) = (user.as_str(), append.once.is_some());
            let state = names.state(user);
            let done = match (id, one) {
                // A key that is never there would have the step wait for as long as a slot of a Cluster moves.
                ("", _) => state.clone(),
                (id, true) => names.dedup_entry(user, id),
                (id, false) => names.delivered_copy(user, id),
            };
            keys.extend([state, names.log(user), done]);
        }
        let mut arguments = vec![text(count)];
        arguments.extend(messages);
        arguments.extend(items);
        let epoch = link.membership().epoch_id();
        let mut answer = self.caller.step(&scripts::APPEND, keys, arguments).await?;
        if let Some(Value::Int(steps)) = answer.pop() {
            link.record_appends(&epoch, steps.unsigned_abs());
        }
        let made = |parts: &[Value]| {
            let (due, unknown) = (integer(parts, 2)?, integer(parts, 3)? == 1);
            let seq = match integer(parts, 0)? {
                0 => Err(Reason::Quota),
                ..0 => Err(Reason::Damaged),
                seq => {
                    link.record_sequence(seq.unsigned_abs());
                    Ok(seq.unsigned_abs())
                }
            };
            Ok(Made { seq, dropped: integer(parts, 1)?.unsigned_abs(), due, unknown })
        };
        answer.chunks(4).map(made).collect()
    }

    async fn now_ms(&self) -> Result<u64, RedisError> {
        let link = self.caller.link()?;
        let (seconds, micros): (u64, u64) = link.client().query(&redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000 + link.ahead_ms())
    }

    /// The answer of an earlier append with the same id.
    async fn answered(&self, once: &Once) -> Result<Option<Appended>, RedisError> {
        let link = self.caller.link()?;
        let key = link.keys().dispatch_result(once.id.as_str());
        let stored: Option<Vec<u8>> = link.client().query(redis::cmd("GET").arg(key)).await?;
        let Some(Ok(stored)) = stored.map(|stored| serde_json::from_slice::<Remembered>(&stored)) else {
            return Ok(None);
        };
        let window_ms = u64::try_from(self.caller.limits().ids_window.as_millis()).unwrap_or(u64::MAX);
        if stored.at_ms.saturating_add(window_ms) <= self.now_ms().await? {
            return Ok(None);
        }
        let rejected = stored.rejected.into_iter();
        let answered = Answered {
            recipients: stored.recipients,
            online: stored.online,
            offline: stored.offline,
            // Most dispatches with an id are stored for everyone they count.
            stored: stored.stored.unwrap_or_else(|| stored.online.saturating_add(stored.offline)),
            rejected: rejected
                .map(|(user, reason)| Rejected {
                    user: user.into(),
                    reason: Reason::from_stored(reason).unwrap_or(Reason::Invalid),
                })
                .collect(),
        };
        Ok(Some(Appended { answered: Some(answered), duplicate: true, ..Appended::default() }))
    }

    /// Remembers what is answered to an append that is done once.
    async fn remember(&self, once: &Once, recipients: &[UserId], made: Appended) -> Result<Appended, RedisError> {
        let taken = |at: usize| made.seqs.get(at).is_none_or(Result::is_ok);
        let count = |here: bool| once.online.iter().enumerate().filter(|(at, one)| **one == here && taken(*at)).count();
        let refused =
            recipients.iter().zip(&made.seqs).filter_map(|(user, seq)| Some(Rejected::new(user.as_str(), seq.err()?)));
        let answered = Answered {
            recipients: (once.online.len() + once.refused.len()) as u32,
            online: count(true) as u32,
            offline: count(false) as u32,
            stored: made.seqs.iter().filter(|seq| seq.is_ok()).count() as u32,
            rejected: once.refused.iter().map(|one| Rejected::new(&one.user, one.reason)).chain(refused).collect(),
        };
        let stored = Remembered {
            at_ms: self.now_ms().await?,
            recipients: answered.recipients,
            online: answered.online,
            offline: answered.offline,
            stored: Some(answered.stored),
            rejected: answered.rejected.iter().map(|one| (one.user.to_string(), one.reason as u8)).collect(),
        };
        let stored = serde_json::to_string(&stored).map_err(|error| RedisError::Refused(error.to_string().into()))?;
        let link = self.caller.link()?;
        let window_ms = self.caller.limits().ids_window.as_millis().clamp(1, 1 << 50).to_string();
        // What was taken is answered, also where it took the last room there was.
        let (key, set) = (link.keys().dispatch_result(once.id.as_str()), [&stored, "PX", &window_ms, "NX"]);
        let first: Option<String> = link.client().query_when_full("SET", &key, &set).await?;
        if first.is_none() {
            // Somebody else was asked for the same at the same time, and has answered.
            if let Some(answered) = self.answered(once).await? {
                return Ok(answered);
            }
            let () = link.client().query_when_full("SET", &key, &set[..3]).await?;
        }
        Ok(Appended { answered: Some(answered), ..made })
    }
}
