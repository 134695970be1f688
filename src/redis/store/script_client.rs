//! Calls the scripts.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use redis::Value;
use serde::Serialize;

use super::{
    replies::{acknowledged, entry, integer, log_name, seq, state, unexpected_reply},
    scripts::{self, LuaScript},
    unflushed::{KnownLog, LogName, Report},
};
use crate::{
    logging::excerpt,
    message::{DeviceId, Seq, UserId},
    redis::{Membership, RedisError, ServerLink},
    store::{Attached, KnownUser, Limits, Overflow, ReadLimit, ReadResult, StoreError, UserState},
};

/// Attempts of a step while the failover epoch changes. Then the step fails as unavailable.
const EPOCH_RETRIES_MAX: usize = 4;

/// Attempts to write the indexes while earlier expiries are added.
const INDEX_RETRIES_MAX: usize = 4;

/// Expiry steps for one user in one pass. Expired entries that are left are still not delivered.
const EXPIRE_STEPS_MAX: usize = 16;

/// Expiry steps before a user's messages are counted. Beyond that the count includes expired ones.
const EXPIRE_STEPS_BEFORE_COUNT_MAX: usize = 256;

/// Logs whose state one step returns. Each may need a few block reads, so more would block Redis for long.
const STATES_PER_STEP_MAX: usize = 20;

/// Such steps in flight at once. Redis runs all that one connection has sent before it serves another.
const STATE_STEPS_IN_FLIGHT_MAX: usize = 4;

/// Delay until the next expiry step of a user whose log is damaged.
const DAMAGED_RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// Arguments of a step.
pub(super) type Arguments = Vec<Bytes>;

/// Calls scripts on logs.
pub(in crate::redis) struct ScriptClient {
    link: Weak<ServerLink>,
    limits: Limits,
    namespace: u32,
}

pub(super) fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

impl ScriptClient {
    pub(super) fn new(link: Weak<ServerLink>, limits: Limits, namespace: u32) -> Self {
        Self { link, limits, namespace }
    }

    pub(in crate::redis) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(in crate::redis) fn link(&self) -> Result<Arc<ServerLink>, RedisError> {
        self.link.upgrade().ok_or_else(|| RedisError::Unavailable("the connection is closed".into()))
    }

    /// Builds the arguments of every step (`lua/prelude.lua`), followed by the step's own.
    fn arguments(&self, link: &ServerLink, membership: &Membership, step: &LuaScript, own: Arguments) -> Arguments {
        let limits = &self.limits;
        let millis = |duration: Option<Duration>| text(duration.map_or(0, |duration| duration.as_millis()));
        let mut arguments = vec![
            Bytes::from_static(step.name.as_bytes()),
            text(link.server_name()),
            text(&membership.servers),
            text(membership.as_of_ms),
            text(link.ahead_ms()),
            text(limits.messages),
            text(limits.bytes),
            millis(limits.age),
            Bytes::from_static(if limits.overflow == Overflow::DropOldest { b"drop" } else { b"reject" }),
            millis(limits.device_age),
            text(limits.devices),
            millis(Some(limits.ids_window)),
            text(self.namespace),
            text(link.keys().append_channel()),
            text(membership.epoch_id()),
            text(if link.client().is_redis_cluster() { membership.base_seq } else { membership.appends }),
            if link.client().is_redis_cluster() { text(&membership.shards) } else { text(link.keys().epoch()) },
        ];
        arguments.extend(own);
        arguments
    }

    /// Runs a step. `own` are its keys. An empty reply means that the user has too many devices, or that a read needs a
    /// report.
    pub(super) async fn step(
        &self,
        step: &LuaScript,
        own: Vec<String>,
        arguments: Arguments,
    ) -> Result<Vec<Value>, RedisError> {
        let link = self.link()?;
        let mut keys = if link.client().is_redis_cluster() {
            vec![own[0].clone(), own[0].clone()]
        } else {
            vec![link.keys().user_index(), link.keys().expiry_index()]
        };
        keys.extend(own);
        for _ in 0..EPOCH_RETRIES_MAX {
            let membership = link.membership();
            let arguments = self.arguments(&link, &membership, step, arguments.clone());
            match link.client().run_script(&step.script, &keys, &arguments).await? {
                Value::Array(values) => return Ok(values),
                Value::BulkString(text) if text == b"too_many_devices" || text == b"report_required" => {
                    return Ok(Vec::new());
                }
                // The step did nothing: the server must adopt the failover epoch first.
                Value::BulkString(text) if text == b"epoch" => link.adopt(&membership.epoch_id()).await?,
                other => return unexpected_reply(&format!("{other:?}").chars().take(100).collect::<String>()),
            }
        }
        Err(RedisError::Unavailable("the failover epoch changes too fast".into()))
    }

    /// Returns the keys of a user's log.
    fn keys(&self, user: &UserId) -> Result<Vec<String>, RedisError> {
        let link = self.link()?;
        Ok(vec![link.keys().state(user.as_str()), link.keys().log(user.as_str())])
    }

    /// Updates the user index and the expiry index in a Redis Cluster, where a step cannot. Then confirms that in the
    /// log: until then each step returns the updates.
    pub(super) async fn update_indexes(&self, user: &UserId, due: i64, not_indexed: bool) -> Result<(), RedisError> {
        let link = self.link()?;
        if !link.client().is_redis_cluster() {
            return Ok(());
        }
        let (mut due, mut not_indexed) = (due, not_indexed);
        for _ in 0..INDEX_RETRIES_MAX {
            if due < 0 && !not_indexed {
                break;
            }
            if not_indexed {
                let arguments = ["0", user.as_str()];
                link.client().query_when_full::<()>("ZADD", &link.keys().user_index(), &arguments).await?;
            }
            if due > 0 {
                // Never later than what another server has written meanwhile.
                let arguments = ["LT", &due.to_string(), user.as_str()];
                link.client().query_when_full::<()>("ZADD", &link.keys().expiry_index(), &arguments).await?;
            }
            let answer =
                self.step(&scripts::MARK_INDEXED, self.keys(user)?, vec![text(user), text(due), text(0)]).await?;
            (due, not_indexed) = (integer(&answer, 0)?, integer(&answer, 1)? == 1);
        }
        Ok(())
    }

    /// Expires entries and devices of a user. Returns whether there is more to expire.
    async fn expire_user(&self, user: &UserId) -> Result<bool, RedisError> {
        let link = self.link()?;
        let answer = self.step(&scripts::EXPIRE, self.keys(user)?, vec![text(user)]).await?;
        let (due, has_expired) = (integer(&answer, 0)?.max(0), integer(&answer, 1)? == 1);
        if link.client().is_redis_cluster() {
            let (index, at) = (link.keys().expiry_index(), due.to_string());
            if due > 0 {
                link.client().query_when_full::<()>("ZADD", &index, &[&at, user.as_str()]).await?;
            } else {
                link.client().query::<()>(redis::cmd("ZREM").arg(&index).arg(user.as_str())).await?;
            }
            // An earlier expiry may have been added meanwhile.
            let answer =
                self.step(&scripts::MARK_INDEXED, self.keys(user)?, vec![text(user), text(due), text(1)]).await?;
            self.update_indexes(user, integer(&answer, 0)?, integer(&answer, 1)? == 1).await?;
        }
        Ok(has_expired)
    }

    /// Writes a report. Returns true if that has moved the head: the log entered another epoch or was repaired.
    pub(super) async fn report(&self, user: &UserId, report: &Report) -> Result<bool, RedisError> {
        let answer = self.step(&scripts::REPORT, self.keys(user)?, vec![encode_report(report), text(user)]).await?;
        self.update_indexes(user, integer(&answer, 0)?, integer(&answer, 1)? == 1).await?;
        Ok(integer(&answer, 2)? == 1)
    }

    /// Attaches a session. `None` where the user has too many devices.
    pub(super) async fn attach(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        report: &Report,
    ) -> Result<Option<(Attached, LogName)>, RedisError> {
        let arguments = vec![encode_report(report), text(device.map_or("", DeviceId::as_str)), text(user)];
        let answer = self.step(&scripts::ATTACH, self.keys(user)?, arguments).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        self.update_indexes(user, integer(&answer, 0)?, integer(&answer, 1)? == 1).await?;
        let acknowledged = acknowledged(integer(&answer, 4)?, &answer[5..])?;
        let head = seq(&answer, 2)?;
        self.link()?.record_sequence(head);
        Ok(Some((Attached { acknowledged, head }, log_name(&answer, 3)?)))
    }

    /// Clears a log. Returns how many entries were pending.
    pub(super) async fn clear(&self, user: &UserId) -> Result<u64, RedisError> {
        let answer = self.step(&scripts::CLEAR, self.keys(user)?, vec![text(user)]).await?;
        self.update_indexes(user, integer(&answer, 1)?, integer(&answer, 2)? == 1).await?;
        seq(&answer, 0)
    }

    /// Reads entries, and the name of the log. Writes a report before that in the same step, if there is one.
    ///
    /// `None` where the log is not the one that sessions know (`known`): the caller must read with a report.
    pub(super) async fn read(
        &self,
        user: &UserId,
        after: Seq,
        limit: ReadLimit,
        report: Option<&Report>,
        known: &KnownLog,
    ) -> Result<Option<(ReadResult, LogName)>, RedisError> {
        // Above the range of integers in Lua, and above any log.
        let capped = |number: u64| text(number.min(1 << 50));
        let (mut entries, mut bytes, from, mut after, mut report) = (Vec::new(), 0, after, after, report);
        let mut known = known.clone();
        loop {
            let returned = [entries.len() as u64, bytes];
            let mut arguments: Arguments =
                [after, limit.entries as u64, limit.bytes as u64].into_iter().chain(returned).map(capped).collect();
            let answer = match report.take() {
                Some(report) => {
                    arguments.extend([encode_report(report), text(user)]);
                    let answer = self.step(&scripts::REPORT_AND_READ, self.keys(user)?, arguments).await?;
                    self.update_indexes(user, integer(&answer, 3)?, integer(&answer, 4)? == 1).await?;
                    known = KnownLog { log_name: log_name(&answer, 1)?, top: 0, flushed: report.changes };
                    answer
                }
                None => {
                    arguments.extend([text(&known.log_name), capped(known.top), text(known.flushed)]);
                    self.step(&scripts::READ, self.keys(user)?, arguments).await?
                }
            };
            if answer.is_empty() {
                return Ok(None);
            }
            let (through, log_name) = (seq(&answer, 0)?, log_name(&answer, 1)?);
            // Each step has a bound, so that Redis serves other clients in between.
            let is_complete = integer(&answer, 2)? == 0;
            let mut answer = answer.into_iter().skip(5);
            while let Some(first) = answer.next() {
                let entry = entry(first, &mut answer)?;
                bytes += entry.payload.as_bytes().len() as u64;
                entries.push(entry);
            }
            if is_complete {
                if through > from {
                    self.link()?.record_sequence(through);
                }
                return Ok(Some((ReadResult { entries, through }, log_name)));
            }
            after = through;
        }
    }

    /// Returns the state of a user, and the bytes that are pending.
    pub(super) async fn state(&self, user: &UserId) -> Result<(UserState, u64), RedisError> {
        for _ in 0..EXPIRE_STEPS_BEFORE_COUNT_MAX {
            let (state, has_expired) = self.states_now(std::slice::from_ref(user)).await?.swap_remove(0)?;
            if !has_expired {
                let bytes = state.pending_bytes;
                return Ok((state, bytes));
            }
            self.expire_user(user).await?;
        }
        let (state, _) = self.states_now(std::slice::from_ref(user)).await?.swap_remove(0)?;
        let bytes = state.pending_bytes;
        Ok((state, bytes))
    }

    /// Returns the state of each user, or why it cannot be read.
    pub(super) async fn states(&self, users: Vec<UserId>) -> Result<Vec<KnownUser>, RedisError> {
        let per_step = if self.link()?.client().is_redis_cluster() { 1 } else { STATES_PER_STEP_MAX };
        let parts: Vec<Vec<UserId>> = users.chunks(per_step).map(<[UserId]>::to_vec).collect();
        let queries = parts.into_iter().map(|users| async move {
            let mut states = Vec::with_capacity(users.len());
            for (user, state) in users.iter().zip(self.states_now(&users).await?) {
                let state = match state {
                    Ok((_, true)) => self.state(user).await.map(|(state, _)| state),
                    state => state.map(|(state, _)| state),
                };
                states.push((user.clone(), state.map_err(store_error)));
            }
            Ok::<_, RedisError>(states)
        });
        let states: Vec<_> =
            futures_util::stream::iter(queries).buffered(STATE_STEPS_IN_FLIGHT_MAX).try_collect().await?;
        Ok(states.into_iter().flatten().collect())
    }

    /// Returns the states of some users in one step, and for each whether expired entries were counted.
    async fn states_now(&self, users: &[UserId]) -> Result<Vec<Result<(UserState, bool), RedisError>>, RedisError> {
        let keys = users.iter().map(|user| self.keys(user)).collect::<Result<Vec<_>, _>>()?.concat();
        let answers = self.step(&scripts::STATE, keys, Vec::new()).await?;
        if answers.len() != users.len() {
            return unexpected_reply("states");
        }
        Ok(answers.iter().map(state).collect())
    }

    /// Returns the sequence up to which entries are acknowledged or missing, and the gaps with their reasons.
    pub(super) async fn gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
    ) -> Result<(Seq, Vec<(Seq, Seq, u8)>), RedisError> {
        let arguments = vec![text(device.map_or("", DeviceId::as_str))];
        let answer = self.step(&scripts::EXPLAIN_GAPS, self.keys(user)?, arguments).await?;
        let gap =
            |parts: &[Value]| Ok((seq(parts, 0)?, seq(parts, 1)?, u8::try_from(seq(parts, 2)?).unwrap_or_default()));
        Ok((seq(&answer, 0)?, answer[1..].chunks(3).map(gap).collect::<Result<_, RedisError>>()?))
    }

    /// Returns the devices that have not acknowledged a sequence; `None` is the cursor of clients without a device.
    pub(super) async fn unreceived_by(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, RedisError> {
        let answer = self.step(&scripts::UNRECEIVED_BY, self.keys(user)?, vec![text(seq.min(1 << 50))]).await?;
        let name = |value: &Value| match value {
            Value::BulkString(name) if name.is_empty() => Ok(None),
            Value::BulkString(name) => match DeviceId::new(&String::from_utf8_lossy(name)) {
                Ok(name) => Ok(Some(name)),
                Err(error) => unexpected_reply(&error.to_string()),
            },
            _ => unexpected_reply("a device"),
        };
        answer.iter().map(name).collect()
    }

    /// Lists users with a log above `after`, in order.
    pub(super) async fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, RedisError> {
        let link = self.link()?;
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(link.keys().user_index()).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
        let users: Vec<String> = link.client().query(&command).await?;
        Ok(users.iter().filter_map(|user| UserId::new(user).ok()).collect())
    }

    /// Expires entries of at most `limit` due users.
    pub(super) async fn expire_due(&self, limit: usize) -> Result<(), RedisError> {
        let link = self.link()?;
        let (seconds, _): (u64, u64) = link.client().query(&redis::cmd("TIME")).await?;
        let now_s = seconds + link.ahead_ms() / 1000;
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(link.keys().expiry_index()).arg("-inf").arg(now_s).arg("LIMIT").arg(0).arg(limit);
        let users: Vec<String> = link.client().query(&command).await?;
        for user in users.iter().filter_map(|user| UserId::new(user).ok()) {
            for _ in 0..EXPIRE_STEPS_MAX {
                match self.expire_user(&user).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(RedisError::Damaged(why)) => {
                        // An operator must repair this log. Expiry goes on for other users.
                        tracing::error!(user = %excerpt(&user), %why, "the log of this user is damaged: nothing expires in it. Repair or delete its keys");
                        let due = i64::try_from(now_s + DAMAGED_RETRY_INTERVAL.as_secs()).unwrap_or(i64::MAX);
                        let later = [&due.to_string(), user.as_str()];
                        link.client().query_when_full::<()>("ZADD", &link.keys().expiry_index(), &later).await?;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// A report in the form that the scripts read (`lua/session_report.lua`).
#[derive(Serialize)]
struct ReportJson<'a> {
    changes: u64,
    flushed: u64,
    log_name: &'a str,
    top: Seq,
    hold: i64,
    devices: &'a [String],
    seen: u64,
    detached: Vec<(&'a str, f64)>,
    acknowledged: Vec<(&'a str, Seq, Seq)>,
}

pub(super) fn encode_report(report: &Report) -> Bytes {
    let seq = |seq: Seq| seq.min(1 << 50);
    // At least 1 µs: a device that detached was last used before one that attaches in the same step.
    let ago = |ago: &Duration| (ago.as_micros().max(1) as f64) / 1000.0;
    let json = ReportJson {
        changes: report.changes,
        flushed: report.flushed,
        log_name: &report.log_name,
        top: seq(report.top),
        hold: report.hold.map_or(-1, |hold| seq(hold).cast_signed()),
        devices: &report.attached,
        seen: report.seen_ms,
        detached: report.detached.iter().map(|(device, since)| (device.as_str(), ago(since))).collect(),
        acknowledged: report
            .acknowledged
            .iter()
            .map(|(device, from, to)| (device.as_str(), seq(*from), seq(*to)))
            .collect(),
    };
    // Numbers and strings can always be encoded.
    Bytes::from(serde_json::to_vec(&json).expect("a report is JSON"))
}

pub(super) fn store_error(error: RedisError) -> StoreError {
    match error {
        RedisError::Full(why) => StoreError::Full(why),
        RedisError::Unavailable(why) | RedisError::Refused(why) => StoreError::Unreachable(why),
        RedisError::Damaged(why) => StoreError::Damaged(why),
    }
}
