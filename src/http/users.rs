//! Serves `/v1/users`: users, their devices and pending messages.

use axum::{
    extract::{Path, Query, State as FromState, rejection::PathRejection, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use utoipa::{IntoParams, ToSchema};

use super::{State, error::ApiError, parameters};
use crate::{
    hub::{CLOSE_REASON_BYTES_MAX, DeviceReport, Entry, Erasure, Gap, UserReport},
    message::{Recipients, Seq, UserId},
    util::rfc3339,
};

/// Items of a page if the request has no `limit`.
const PAGE_DEFAULT: usize = 100;

/// Maximum of `limit`.
const PAGE_MAX: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    /// `true`: only users who are online. `false`: only those who are offline. Default: all known users.
    online: Option<bool>,
    /// `true`: only users with pending messages. `false`: only those without. Default: all known users.
    pending: Option<bool>,
    /// Only users whose id begins with this text.
    #[param(min_length = 1, max_length = 256)]
    prefix: Option<String>,
    /// Only users above this id: `cursor` of the previous page.
    #[param(min_length = 1, max_length = 256)]
    cursor: Option<String>,
    /// Users of a page.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageParameters {
    /// Only messages above this sequence: `cursor` of the previous page.
    #[serde(default)]
    #[param(value_type = Option<u64>)]
    after: Seq,
    /// Messages of a page.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct DisconnectParameters {
    /// Text for the clients, at most 123 bytes. Default: a text of the server.
    #[param(max_length = 123)]
    reason: Option<String>,
}

/// A user.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct User<'a> {
    /// User id.
    id: &'a str,
    /// Whether the user has an authenticated connection.
    online: bool,
    /// Authenticated connections.
    connections: usize,
    devices: Vec<Device<'a>>,
    /// When the user last connected or disconnected, if that was recorded.
    #[schema(format = DateTime)]
    last_seen: Option<String>,
    /// Pending messages.
    pending: u64,
    /// Bytes of pending messages; an estimate while acknowledgements are out of order.
    pending_bytes: u64,
    /// Sequence of the user's last message; 0 if there was none.
    last_sequence: u64,
    /// The lowest cursor: every device has acknowledged all messages up to and including this sequence.
    acknowledged: u64,
    /// Missing ranges of the log with a known reason: at most the last 64. Lists of users leave them out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    gaps: Option<Vec<LogGap>>,
    /// `true`: some stored data of the user cannot be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
}

/// A device of a user, with a cursor of its own.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the API names it so")]
pub(super) struct Device<'a> {
    /// Name that the client has given.
    device: &'a str,
    /// Cursor: the device has acknowledged all messages up to and including this sequence.
    acknowledged: u64,
    /// Messages that the device has not acknowledged.
    pending: u64,
    /// When it last connected or disconnected, if that was recorded.
    #[schema(format = DateTime)]
    last_seen: Option<String>,
}

/// A missing range of a log, both ends included.
#[derive(Serialize, ToSchema)]
pub(super) struct LogGap {
    /// First missing sequence.
    from: u64,
    /// Last missing sequence.
    to: u64,
    /// Reason: `expired`, `quota`, `cleared`, `collapsed`, `received`, `lost` or `restart`.
    reason: &'static str,
}

/// A page of users, in the order of their ids.
#[derive(Serialize, ToSchema)]
pub(super) struct UserPage<'a> {
    users: Vec<User<'a>>,
    /// `cursor` of the next page; `null`: this is the last one.
    cursor: Option<&'a str>,
}

/// A page of pending messages, in the order of their sequences.
#[derive(Serialize, ToSchema)]
pub(super) struct MessagePage {
    #[schema(value_type = Vec<PendingMessage>)]
    messages: Vec<Box<RawValue>>,
    /// `after` of the next page; `null`: this page is empty.
    #[schema(value_type = Option<u64>)]
    cursor: Option<Seq>,
}

/// A pending message, as a client receives it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the JSON of `message_json`, which copies a stored message byte for byte")]
struct PendingMessage {
    /// Opcode.
    op: u64,
    /// Data.
    #[schema(required = false)]
    d: Value,
    /// Type.
    #[schema(required = false, nullable = false)]
    t: Option<String>,
    /// Sequence in the user's log.
    s: u64,
}

/// Result of clearing messages.
#[derive(Serialize, ToSchema)]
pub(super) struct Cleared {
    /// Number of cleared messages.
    cleared: u64,
}

/// Result of an erasure.
#[derive(Serialize, ToSchema)]
pub(super) struct Erased {
    /// Always `true`.
    erased: bool,
}

/// Result of disconnecting a user.
#[derive(Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// Number of connections.
    disconnected: usize,
}

type UserPath = Result<Path<String>, PathRejection>;

fn parse_user(path: UserPath) -> Result<UserId, ApiError> {
    let Path(id) = path
        .map_err(|_| ApiError::BadParameter("the user id in the path, percent-decoded, is not valid UTF-8".into()))?;
    Ok(UserId::new(&id)?)
}

fn decode_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|query| query.0).map_err(|rejection| parameters::decode_error(&rejection))
}

fn page_limit(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(PAGE_DEFAULT) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        limit => Err(ApiError::BadParameter(format!("limit is {limit}; it must be from 1 to {PAGE_MAX}"))),
    }
}

impl<'a> From<&'a UserReport> for User<'a> {
    fn from(report: &'a UserReport) -> Self {
        Self {
            id: report.user.as_str(),
            online: report.connections > 0,
            connections: report.connections,
            devices: report.devices.iter().map(Device::from).collect(),
            last_seen: report.last_seen.map(rfc3339::rfc3339),
            pending: report.pending,
            pending_bytes: report.pending_bytes,
            last_sequence: report.last_sequence,
            acknowledged: report.acknowledged,
            gaps: None,
            damaged: report.damaged,
        }
    }
}

impl<'a> From<&'a DeviceReport> for Device<'a> {
    fn from(report: &'a DeviceReport) -> Self {
        let DeviceReport { device, acknowledged, pending, last_seen, .. } = report;
        Self {
            device: device.as_str(),
            acknowledged: *acknowledged,
            pending: *pending,
            last_seen: last_seen.map(rfc3339::rfc3339),
        }
    }
}

impl From<&Gap> for LogGap {
    fn from(gap: &Gap) -> Self {
        Self { from: gap.from, to: gap.to, reason: gap.reason.as_str() }
    }
}

fn respond(body: &impl Serialize) -> Response {
    // Maps with string keys always have a JSON form.
    super::json(StatusCode::OK, serde_json::to_vec(body).expect("a response is JSON"))
}

/// Serves `GET /v1/users`.
pub(super) async fn list(
    FromState(api): State,
    query: Result<Query<ListParameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let ListParameters { online, pending, prefix, cursor, limit } = decode_query(query)?;
    let (limit, after) = (page_limit(limit)?, cursor.map(|cursor| UserId::new(&cursor)).transpose()?);
    let prefix = prefix.map(|prefix| UserId::new(&prefix)).transpose()?;
    // No id with the prefix is below the prefix itself.
    let above = after.as_ref().max(prefix.as_ref());
    let mut reports = if online == Some(true) {
        api.hub.users_of(api.hub.online(above, limit).await).await?
    } else {
        api.hub.users(above, limit).await?
    };
    let mut cursor = if reports.len() == limit { reports.last().map(|last| last.user.clone()) } else { None };
    if let Some(prefix) = &prefix {
        let count = reports.len();
        reports.retain(|report| report.user.as_str().starts_with(prefix.as_str()));
        if reports.len() < count {
            cursor = None;
        }
        // A page holds the users above its cursor, so the user with this very id is missing in the first one.
        if after.is_none_or(|after| after < *prefix) {
            let exact = api.hub.user(prefix).await?;
            if exact.known && (online != Some(true) || exact.connections > 0) {
                reports.insert(0, exact);
            }
            if reports.len() > limit {
                reports.truncate(limit);
                cursor = reports.last().map(|last| last.user.clone());
            }
        }
    }
    let is_listed = |report: &&UserReport| {
        (online != Some(false) || report.connections == 0)
            && pending.is_none_or(|pending| pending == (report.pending > 0))
    };
    let users = reports.iter().filter(is_listed).map(User::from).collect();
    Ok(respond(&UserPage { users, cursor: cursor.as_ref().map(UserId::as_str) }))
}

/// Serves `GET /v1/users/{id}`.
pub(super) async fn show(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    let user = api.hub.user(&parse_user(path)?).await?;
    if !user.known {
        return Err(ApiError::UserUnknown);
    }
    let gaps = user.gaps.iter().map(LogGap::from).collect();
    Ok(respond(&User { gaps: Some(gaps), ..User::from(&user) }))
}

/// Serves `GET /v1/users/{id}/messages`.
pub(super) async fn messages(
    FromState(api): State,
    path: UserPath,
    query: Result<Query<MessageParameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let MessageParameters { after, limit } = decode_query(query)?;
    let (user, limit) = (parse_user(path)?, page_limit(limit)?);
    let entries = api.hub.pending(&user, after, limit).await?;
    // A page is bounded in bytes too, so only an empty page is the last for certain.
    let cursor = entries.last().map(|last| last.seq);
    Ok(respond(&MessagePage { messages: entries.iter().filter_map(message_json).collect(), cursor }))
}

/// Returns a message as a client receives it, with its sequence as `s`.
fn message_json(entry: &Entry) -> Option<Box<RawValue>> {
    // A payload is one JSON object, byte for byte as the hub encoded it.
    let text = std::str::from_utf8(entry.payload.as_bytes()).ok()?.strip_suffix('}')?;
    RawValue::from_string(format!("{text},\"s\":{}}}", entry.seq)).ok()
}

/// Serves `DELETE /v1/users/{id}/messages`.
pub(super) async fn clear(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    let cleared = api.hub.clear(&parse_user(path)?).await?;
    Ok(respond(&Cleared { cleared }))
}

/// Serves `DELETE /v1/users/{id}`.
pub(super) async fn erase(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    match api.hub.erase(&parse_user(path)?).await? {
        Erasure::Erased => Ok(respond(&Erased { erased: true })),
        Erasure::Unknown => Err(ApiError::UserUnknown),
        Erasure::Online => Err(ApiError::UserOnline),
        Erasure::Unsupported => Err(ApiError::EraseUnsupported),
    }
}

/// Serves `POST /v1/users/{id}/disconnect`.
pub(super) async fn disconnect(
    FromState(api): State,
    path: UserPath,
    query: Result<Query<DisconnectParameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let DisconnectParameters { reason } = decode_query(query)?;
    let user = parse_user(path)?;
    if let Some(bytes) = reason.as_ref().map(String::len).filter(|bytes| *bytes > CLOSE_REASON_BYTES_MAX) {
        return Err(ApiError::BadParameter(format!(
            "reason has {bytes} bytes; a close frame has at most {CLOSE_REASON_BYTES_MAX}. Send a shorter one"
        )));
    }
    let reason = reason.filter(|reason| !reason.is_empty()).map(Into::into);
    let connections = api.hub.connection_count_of(&user).await;
    api.hub.disconnect_with(&Recipients::Users(vec![user]), &[], reason).await;
    Ok(respond(&Disconnected { disconnected: connections }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_limit_out_of_range_is_rejected() {
        assert_eq!(page_limit(None).unwrap(), PAGE_DEFAULT);
        assert_eq!(page_limit(Some(1000)).unwrap(), 1000);
        assert!(page_limit(Some(0)).is_err() && page_limit(Some(1001)).is_err());
    }
}
