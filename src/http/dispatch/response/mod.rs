//! Encodes the result of a dispatch as JSON, and logs it.

use std::io::Write as _;

use utoipa::ToSchema;

use crate::{http::Caller, hub::Outcome};

/// Result of a dispatch.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the JSON that `write` encodes by hand, for speed")]
pub(in crate::http) struct DispatchResult {
    /// Recipients: each user counts once, excluded users do not count, rejected ones do. For `*`: connections.
    recipients: u64,
    /// Accepted recipients that are online.
    online: u64,
    /// Accepted recipients that are offline.
    offline: u64,
    /// Logs that the message was appended to.
    stored: u64,
    /// Recipients that were not accepted.
    rejected: Vec<RejectedRecipient>,
    /// `true`: this is the result of an earlier dispatch with the same `id`.
    duplicate: bool,
}

/// A recipient that was not accepted.
#[derive(ToSchema)]
#[expect(dead_code, reason = "as `DispatchResult`")]
struct RejectedRecipient {
    /// The user id as sent, up to 1,024 bytes.
    user: String,
    /// `invalid`: not a user id. `quota`: too many pending messages or bytes. `damaged`: the user's data is unreadable.
    reason: RejectedReason,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "as `DispatchResult`")]
enum RejectedReason {
    Invalid,
    Quota,
    Damaged,
}

/// Capacity in bytes for a result in which no recipient is rejected.
pub(super) const USUAL_BYTES: usize = 128;

/// Logs a dispatch.
pub(super) fn log(caller: &Caller, outcome: &Outcome) {
    let Outcome { recipients, online, stored, duplicate, .. } = *outcome;
    let rejected = outcome.rejected.len();
    tracing::debug!(peer = caller.peer(), recipients, online, stored, rejected, duplicate, "dispatched");
}

/// Appends the encoded result, without a line end.
pub(super) fn write(outcome: &Outcome, out: &mut Vec<u8>) {
    let Outcome { recipients, online, offline, stored, .. } = outcome;
    // Writing to a Vec cannot fail, and a string always has a JSON form.
    let infallible = "writing to a Vec cannot fail";
    let begun = write!(
        out,
        r#"{{"recipients":{recipients},"online":{online},"offline":{offline},"stored":{stored},"rejected":["#
    );
    begun.expect(infallible);
    for (at, rejected) in outcome.rejected.iter().enumerate() {
        out.extend_from_slice(if at == 0 { br#"{"user":"# } else { br#",{"user":"# });
        rejected.write_user(out);
        write!(out, r#","reason":"{}"}}"#, rejected.reason.as_str()).expect(infallible);
    }
    write!(out, r#"],"duplicate":{}}}"#, outcome.duplicate).expect(infallible);
}

#[cfg(test)]
mod tests;
