//! Words for errors of the query's reader.

use axum::extract::rejection::QueryRejection;

use super::error::ApiError;

/// Rejects a query, with what would do.
pub(super) fn bad(rejection: &QueryRejection) -> ApiError {
    let text = rejection.body_text();
    ApiError::Parameter(reworded(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text)))
}

fn reworded(text: &str) -> String {
    let Some((name, reason)) = text.split_once(": ") else { return text.to_owned() };
    match reason {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            format!("{name} must be a whole number, 0 or more")
        }
        "number too large to fit in target type" => format!("{name} is too large"),
        "provided string was not `true` or `false`" => format!("{name} must be true or false"),
        _ => text.to_owned(),
    }
}
