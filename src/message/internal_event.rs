//! Defines internal events: dispatches that instruct the server, and are never sent to a client.

/// Opcode of internal events.
pub const INTERNAL_EVENT: u64 = 5;

/// Type of the only internal event: it closes all connections of its recipients.
pub const DISCONNECT_CLIENT: &str = "DISCONNECT_CLIENT";

/// Checks the type of an internal event, and that it has no `id`, `o.ttl` or `o.collapse`.
///
/// # Errors
/// The sentence for the backend.
pub fn check_internal_event(kind: Option<&str>, has_id_or_options: bool) -> Result<(), &'static str> {
    if kind != Some(DISCONNECT_CLIENT) {
        return Err("opcode 5 is for internal events, and t must be DISCONNECT_CLIENT");
    }
    if has_id_or_options {
        return Err("id, o.ttl and o.collapse are for messages: omit them; disconnecting twice does no harm");
    }
    Ok(())
}
