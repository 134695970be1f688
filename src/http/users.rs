//! Serves `/v1/users`: users, their devices and pending messages.

use axum::{
    extract::{Path, Query, State as FromState, rejection::PathRejection, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{State, error::ApiError, parameters};
use crate::{
    hub::{DeviceReport, Entry, Erasure, UserReport},
    message::{Recipients, Seq, UserId},
    util::rfc3339,
};

/// Items of a page if the request has no `limit`.
const PAGE_DEFAULT: usize = 100;

/// Maximum of `limit`.
const PAGE_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    online: Option<bool>,
    cursor: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageParameters {
    #[serde(default)]
    after: Seq,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct MessagePage {
    messages: Vec<Box<RawValue>>,
    cursor: Option<Seq>,
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

fn report_json(report: &UserReport) -> Value {
    let mut body = json!({
        "id": report.user,
        "online": report.connections > 0,
        "connections": report.connections,
        "devices": report.devices.iter().map(device_json).collect::<Vec<_>>(),
        "lastSeen": report.last_seen.map(rfc3339::rfc3339),
        "pending": report.pending,
        "pendingBytes": report.pending_bytes,
        "lastSequence": report.last_sequence,
    });
    if report.damaged {
        body["damaged"] = true.into();
    }
    body
}

fn device_json(report: &DeviceReport) -> Value {
    json!({
        "device": report.device.as_str(),
        "pending": report.pending,
        "lastSeen": report.last_seen.map(rfc3339::rfc3339),
    })
}

/// Serves `GET /v1/users`.
pub(super) async fn list(
    FromState(api): State,
    query: Result<Query<ListParameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let ListParameters { online, cursor, limit } = decode_query(query)?;
    let (limit, after) = (page_limit(limit)?, cursor.map(|cursor| UserId::new(&cursor)).transpose()?);
    let reports = if online == Some(true) {
        api.hub.users_of(api.hub.online(after.as_ref(), limit).await).await?
    } else {
        api.hub.users(after.as_ref(), limit).await?
    };
    let cursor = if reports.len() == limit { reports.last().map(|last| last.user.clone()) } else { None };
    let is_listed = |report: &&UserReport| online != Some(false) || report.connections == 0;
    let users: Vec<Value> = reports.iter().filter(is_listed).map(report_json).collect();
    Ok(super::json(StatusCode::OK, json!({"users": users, "cursor": cursor}).to_string()))
}

/// Serves `GET /v1/users/{id}`.
pub(super) async fn show(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    let user = api.hub.user(&parse_user(path)?).await?;
    if !user.known {
        return Err(ApiError::UserUnknown);
    }
    Ok(super::json(StatusCode::OK, report_json(&user).to_string()))
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
    let page = MessagePage { messages: entries.iter().filter_map(message_json).collect(), cursor };
    // Maps with string keys always have a JSON form.
    let body = serde_json::to_vec(&page).expect("a page is JSON");
    Ok(super::json(StatusCode::OK, body))
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
    Ok(super::json(StatusCode::OK, json!({"cleared": cleared}).to_string()))
}

/// Serves `DELETE /v1/users/{id}`.
pub(super) async fn erase(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    match api.hub.erase(&parse_user(path)?).await? {
        Erasure::Erased => Ok(super::json(StatusCode::OK, json!({"erased": true}).to_string())),
        Erasure::Unknown => Err(ApiError::UserUnknown),
        Erasure::Online => Err(ApiError::UserOnline),
        Erasure::Unsupported => Err(ApiError::EraseUnsupported),
    }
}

/// Serves `POST /v1/users/{id}/disconnect`.
pub(super) async fn disconnect(FromState(api): State, path: UserPath) -> Result<Response, ApiError> {
    let user = parse_user(path)?;
    let connections = api.hub.connection_count_of(&user).await;
    api.hub.disconnect(&Recipients::Users(vec![user]), &[]).await;
    Ok(super::json(StatusCode::OK, json!({"disconnected": connections}).to_string()))
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
