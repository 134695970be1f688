//! Decodes the replies of scripts.

use bytes::Bytes;
use redis::Value;

use super::unflushed::{LogName, time};
use crate::{
    message::{DeviceId, Payload},
    redis::RedisError,
    store::{AckSet, DeviceState, Entry, Gap, UserState, gaps::GapList},
};

pub(super) fn unexpected_reply<T>(what: &str) -> Result<T, RedisError> {
    Err(RedisError::Damaged(format!("unexpected reply of a script: {what}").into()))
}

/// Decodes an entry from its first value and the values that follow.
pub(super) fn entry(first: Value, following: &mut impl Iterator<Item = Value>) -> Result<Entry, RedisError> {
    let (
        Value::Int(seq),
        Some(Value::Int(namespace)),
        Some(Value::BulkString(owner)),
        Some(Value::BulkString(payload)),
    ) = (first, following.next(), following.next(), following.next())
    else {
        return unexpected_reply("an entry");
    };
    Ok(Entry {
        // The namespace is returned as stored. The session compares it before it writes to the socket.
        namespace: u32::try_from(namespace).unwrap_or_default(),
        owner: Bytes::from(owner),
        seq: seq.unsigned_abs(),
        payload: Payload::from_stored(Bytes::from(payload)),
    })
}

/// Decodes the state of a user, and whether expired entries were counted.
pub(super) fn state(answer: &Value) -> Result<(UserState, bool), RedisError> {
    let answer = match answer {
        Value::Array(answer) => answer,
        Value::BulkString(why) => return Err(RedisError::Damaged(String::from_utf8_lossy(why).into())),
        _ => return unexpected_reply("a state"),
    };
    let (Some(Value::Array(ranges)), Some(Value::Array(devices)), Some(Value::Array(gap_values))) =
        (answer.get(3), answer.get(7), answer.get(9))
    else {
        return unexpected_reply("a state");
    };
    let device = |value: &Value| {
        let Value::Array(parts) = value else { return unexpected_reply("a device") };
        let Some(Value::BulkString(name)) = parts.first() else { return unexpected_reply("a device") };
        let name = DeviceId::new(&String::from_utf8_lossy(name))
            .map_err(|error| RedisError::Damaged(error.to_string().into()))?;
        Ok(DeviceState {
            device: name,
            acknowledged: seq(parts, 3)?,
            pending: seq(parts, 1)?,
            seen: time(seq(parts, 2)?),
        })
    };
    let state = UserState {
        known: integer(answer, 0)? == 1,
        head: seq(answer, 1)?,
        acknowledged: acknowledged(integer(answer, 2)?, ranges)?,
        pending: seq(answer, 4)?,
        pending_bytes: seq(answer, 5)?,
        damaged: false,
        seen: time(seq(answer, 6)?),
        devices: devices.iter().map(device).collect::<Result<_, _>>()?,
        gaps: gaps(gap_values)?,
    };
    Ok((state, integer(answer, 8)? == 1))
}

/// Decodes gaps from the first sequence, the last one and the reason of each.
fn gaps(values: &[Value]) -> Result<Vec<Gap>, RedisError> {
    let stored =
        |parts: &[Value]| Ok((seq(parts, 0)?, seq(parts, 1)?, u8::try_from(seq(parts, 2)?).unwrap_or_default()));
    let stored = values.chunks(3).map(stored).collect::<Result<Vec<_>, RedisError>>()?;
    Ok(GapList::from_stored(&stored).as_slice().to_vec())
}

pub(super) fn log_name(values: &[Value], at: usize) -> Result<LogName, RedisError> {
    match values.get(at) {
        Some(Value::BulkString(log_name)) => Ok(String::from_utf8_lossy(log_name).into()),
        _ => unexpected_reply("a log name"),
    }
}

pub(super) fn integer(values: &[Value], at: usize) -> Result<i64, RedisError> {
    match values.get(at) {
        Some(Value::Int(number)) => Ok(*number),
        _ => unexpected_reply("a number"),
    }
}

pub(super) fn seq(values: &[Value], at: usize) -> Result<u64, RedisError> {
    Ok(integer(values, at)?.unsigned_abs())
}

pub(super) fn acknowledged(through: i64, ranges: &[Value]) -> Result<AckSet, RedisError> {
    let range = |parts: &[Value]| Ok((seq(parts, 0)?, seq(parts, 1)?));
    let ranges = ranges.chunks(2).map(range).collect::<Result<Vec<_>, RedisError>>()?;
    Ok(AckSet::from_parts(through.unsigned_abs(), &ranges))
}
