//! Lists every error code of the API.

/// An error code.
#[derive(Debug)]
pub struct Code {
    pub name: &'static str,
    pub status: u16,
    pub meaning: &'static str,
    /// Operations that answer with it.
    pub scope: Scope,
}

/// Operations that an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every request.
    All,
    /// Every request that needs a key.
    Guarded,
    /// Requests that read or write the store.
    Store,
    /// Requests that write the store.
    Write,
    /// Requests with a user id in their path.
    User,
    /// Those that name it.
    Named,
}

const fn code(name: &'static str, status: u16, scope: Scope, meaning: &'static str) -> Code {
    Code { name, status, meaning, scope }
}

/// Every error code, in the order of their statuses.
#[rustfmt::skip]
pub const CODES: &[Code] = &[
    code("bad_request", 400, Scope::All, "a malformed request head"),
    code("bad_parameter", 400, Scope::Guarded, "an unknown, repeated or wrong parameter"),
    code("bad_json", 400, Scope::Named, "the body is not JSON"),
    code("bad_body", 400, Scope::Named, "the body broke off"),
    code("unauthorized", 401, Scope::Guarded, "no API key, or a wrong one"),
    code("no_session", 401, Scope::Named, "at the admin page: no session, or it has ended"),
    code("wrong_password", 401, Scope::Named, "at the admin page: a wrong password"),
    code("csrf_token", 403, Scope::Named, "at the admin page: no header `X-CSRF-Token`, or not with the token of the session"),
    code("foreign_page", 403, Scope::All, "with `--dev` or `authentication.insecure`: a web page of another machine"),
    code("not_found", 404, Scope::User, "no such endpoint"),
    code("user_unknown", 404, Scope::Named, "no message was ever stored for this user, and no client has connected as this user"),
    // Its other methods are no operations, so this concerns none.
    code("method_not_allowed", 405, Scope::Named, "the path does not support this method; the header `Allow` lists those that it does"),
    code("too_slow", 408, Scope::All, "the body or the response took more than 30 s"),
    code("user_online", 409, Scope::Named, "the user connected again and again for 10 s, so nothing was erased"),
    code("backup_running", 409, Scope::Named, "a backup is already running"),
    code("backup_elsewhere", 409, Scope::Named, "the logs are in Redis: use its own backups"),
    code("portals_off", 409, Scope::Named, "`portal.enabled` is off"),
    code("too_many_portals", 409, Scope::Named, "1,024 portals are connected"),
    code("too_many_observers", 409, Scope::Named, "the limit of observers is reached"),
    code("request_too_large", 413, Scope::Named, "a body above `limits.requestBytes`"),
    code("message_too_large", 413, Scope::Named, "a message above 64 KiB"),
    code("unsupported_media_type", 415, Scope::Named, "the body is neither JSON nor NDJSON, or has a `Content-Encoding`"),
    code("bad_dispatch", 422, Scope::Named, "JSON, but not a dispatch"),
    code("bad_message", 422, Scope::Named, "a message with an opcode of the protocol, too many nesting levels, or a wrong option"),
    code("too_many_recipients", 422, Scope::Named, "more than `limits.recipients`"),
    code("sync_off", 422, Scope::Named, "`o.ttl` or `o.collapse` while `sync.enabled` is off"),
    code("bad_user", 422, Scope::User, "not a user id"),
    code("upgrade_required", 426, Scope::Named, "a request to the path of the WebSocket that is not a WebSocket"),
    code("too_many_wrong_keys", 429, Scope::Guarded, "too many wrong keys from this address"),
    code("head_too_large", 431, Scope::All, "a request head above 16 KiB or 100 headers"),
    code("internal", 500, Scope::Store, "an error of the server; its log has the reason"),
    code("not_implemented", 501, Scope::Named, "the logs are in Redis, where a user cannot be erased yet"),
    code("too_many_connections", 503, Scope::All, "`limits.connections`, or the limit of open files, is reached"),
    code("shutting_down", 503, Scope::Store, "the server is stopping"),
    code("store_failed", 503, Scope::Store, "a write to the store has failed"),
    code("unreachable", 503, Scope::Store, "the Redis that stores the logs cannot be reached; retry"),
    code("busy", 503, Scope::Write, "more arrives than the disk takes; nothing was accepted; retry"),
    code("outcome_unknown", 503, Scope::Write, "the disk was full during the write; retry only with an `id`"),
    code("full", 507, Scope::Write, "no capacity: `store.maxBytes` or `store.minFree`; retry later"),
];
