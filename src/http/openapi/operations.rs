//! Lists every operation of the API.

use serde_json::Value;
use utoipa::{
    IntoParams,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    super::{client_script, dispatch, sse, users},
    codes::{Code, Scope},
};

/// Path of the document, of the page, and of the page's style sheet.
pub const DOCUMENT_PATH: &str = "/openapi.json";
pub const PAGE_PATH: &str = "/docs";
pub const STYLE_PATH: &str = "/docs/docs.css";

/// Groups of operations.
pub const TAGS: [(&str, &str); 4] = [
    ("Dispatch", "Send messages."),
    ("Users", "Users, their devices and pending messages."),
    ("Server", "Events, status and backup."),
    ("Public", "Health, metrics, the JavaScript client and this documentation. They need no API key."),
];

/// An operation.
#[derive(Debug)]
pub struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    pub id: &'static str,
    pub tag: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    /// Parameters of the query and of headers.
    pub parameters: fn() -> Vec<Parameter>,
    /// Alternative bodies of the request; none: it has no body.
    pub bodies: &'static [Body],
    /// Whether a request without a body is valid too.
    pub body_is_optional: bool,
    pub replies: &'static [Reply],
    /// Use of the store, which implies errors.
    pub store: Scope,
    /// Further error codes.
    pub errors: &'static [&'static str],
}

/// A form of a request's body.
#[derive(Debug)]
pub struct Body {
    pub kind: &'static str,
    /// Name of the schema; empty: text.
    pub schema: &'static str,
    pub example: &'static str,
}

/// A response without an error.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: &'static str,
    /// Content type; empty: no content.
    pub kind: &'static str,
    /// Name of the schema; empty: text.
    pub schema: &'static str,
}

impl Body {
    /// Returns the example as JSON, or as text.
    pub fn json_example(&self) -> Value {
        serde_json::from_str(self.example).unwrap_or_else(|_| self.example.into())
    }
}

impl Operation {
    /// Reports whether the operation may answer with this error.
    pub fn may_answer(&self, code: &Code) -> bool {
        let is_guarded = self.path.starts_with("/v1/");
        match code.scope {
            Scope::All => true,
            Scope::Guarded => is_guarded,
            Scope::Store => matches!(self.store, Scope::Store | Scope::Write),
            Scope::Write => self.store == Scope::Write,
            Scope::User => self.path.contains("{id}") || self.errors.contains(&code.name),
            Scope::Named => self.errors.contains(&code.name),
        }
    }
}

const JSON: &str = "application/json";

const fn json(schema: &'static str, text: &'static str) -> Reply {
    Reply { status: 200, text, kind: JSON, schema }
}

const fn text(status: u16, kind: &'static str, text: &'static str) -> Reply {
    Reply { status, text, kind, schema: "" }
}

fn none() -> Vec<Parameter> {
    Vec::new()
}

fn query<T: IntoParams>() -> Vec<Parameter> {
    T::into_params(|| Some(ParameterIn::Query))
}

const PUBLIC: Operation = Operation {
    method: "get",
    path: "",
    id: "",
    tag: "Public",
    summary: "",
    description: "",
    parameters: none,
    bodies: &[],
    body_is_optional: false,
    replies: &[],
    store: Scope::All,
    errors: &[],
};

const USER: Operation = Operation { tag: "Users", store: Scope::Store, ..PUBLIC };

/// Every operation. Those of one path are neighbours.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: dispatch::PATH,
        id: "dispatch",
        tag: "Dispatch",
        summary: "Dispatch a message",
        description: "Sends a message to users, or to every connection (`[\"*\"]`). The response comes when every entry is as \
                      durable as `store.durability` demands. A retry with the same `id` returns the first result with \
                      `duplicate: true`. With `application/x-ndjson` the body is a stream: a dispatch in each line, and a \
                      result or an error in each line of the response, in the same order.",
        bodies: &[
            Body {
                kind: JSON,
                schema: "Dispatch",
                example: r#"{"message":{"d":{"text":"hello"},"t":"GREETING"},"recipients":["alice","bob"],"id":"order-7"}"#,
            },
            Body {
                kind: "application/x-ndjson",
                schema: "",
                example: "{\"message\":{\"d\":1},\"recipients\":[\"alice\"],\"id\":\"line-1\"}\n",
            },
        ],
        replies: &[json("DispatchResult", "The result; for a stream, a result or an error in each line.")],
        store: Scope::Write,
        errors: &[
            "bad_json",
            "bad_body",
            "bad_dispatch",
            "bad_message",
            "too_many_recipients",
            "sync_off",
            "request_too_large",
            "message_too_large",
            "unsupported_media_type",
        ],
        ..PUBLIC
    },
    Operation {
        path: "/v1/users",
        id: "listUsers",
        summary: "List users",
        description: "Lists users by id, in pages. Request the next page with the `cursor` of the response, until it is `null`.",
        parameters: query::<users::ListParameters>,
        replies: &[json("UserPage", "A page of users.")],
        errors: &["bad_user"],
        ..USER
    },
    Operation {
        path: "/v1/users/{id}",
        id: "showUser",
        summary: "Show a user",
        description: "Returns the connections, devices, and pending messages of a user.",
        replies: &[json("User", "The user.")],
        errors: &["user_unknown"],
        ..USER
    },
    Operation {
        method: "delete",
        path: "/v1/users/{id}",
        id: "eraseUser",
        summary: "Erase a user",
        description: "Disconnects the user, and erases everything that the store has about the user.",
        replies: &[json("Erased", "The user is erased.")],
        store: Scope::Write,
        errors: &["user_unknown", "user_online", "not_implemented"],
        ..USER
    },
    Operation {
        path: "/v1/users/{id}/messages",
        id: "listMessages",
        summary: "List pending messages",
        description: "Lists pending messages in the order of their sequences, in pages, and removes none. A page is bounded in \
                      bytes too. Request the next page with `after`, until `cursor` is `null`.",
        parameters: query::<users::MessageParameters>,
        replies: &[json("MessagePage", "A page of messages.")],
        ..USER
    },
    Operation {
        method: "delete",
        path: "/v1/users/{id}/messages",
        id: "clearMessages",
        summary: "Clear pending messages",
        description: "Acknowledges all pending messages of a user, for every device.",
        replies: &[json("Cleared", "The messages are cleared.")],
        store: Scope::Write,
        ..USER
    },
    Operation {
        method: "post",
        path: "/v1/users/{id}/disconnect",
        id: "disconnectUser",
        summary: "Disconnect a user",
        description: "Closes the connections of a user with 1000. Pending messages stay.",
        parameters: query::<users::DisconnectParameters>,
        replies: &[json("Disconnected", "The connections are being closed.")],
        store: Scope::All,
        ..USER
    },
    Operation {
        path: "/v1/events",
        id: "streamEvents",
        tag: "Server",
        summary: "Stream client events",
        description: "Streams client events as server-sent events (SSE). Each event goes to one of the connected portals, or to all \
                      of them that have set `all`. The header `Last-Event-ID` resumes a stream that broke.",
        parameters: sse::documented_parameters,
        replies: &[text(200, "text/event-stream", "A stream of events, until the connection is closed.")],
        errors: &["portals_off", "too_many_portals", "too_many_observers"],
        ..PUBLIC
    },
    Operation {
        path: "/v1/status",
        id: "showStatus",
        tag: "Server",
        summary: "Show the status of the server",
        description: "Returns figures of the server. Counters begin at its start.",
        replies: &[json("Status", "The status.")],
        ..PUBLIC
    },
    Operation {
        method: "post",
        path: "/v1/drain",
        id: "drain",
        tag: "Server",
        summary: "Drain the server",
        description: "Takes no new clients from now on, and closes the present ones over a time. `/readyz` then answers 503. \
                      `DELETE` or a restart ends this state.",
        bodies: &[Body { kind: JSON, schema: "Drain", example: r#"{"seconds":30}"# }],
        body_is_optional: true,
        replies: &[json("DrainState", "The server drains. `connections`: those that are closed.")],
        errors: &["bad_json", "bad_body"],
        ..PUBLIC
    },
    Operation {
        path: "/v1/drain",
        id: "showDrain",
        tag: "Server",
        summary: "Show the state of a drain",
        description: "Returns whether the server drains, and its open connections.",
        replies: &[json("DrainState", "The state.")],
        ..PUBLIC
    },
    Operation {
        method: "delete",
        path: "/v1/drain",
        id: "cancelDrain",
        tag: "Server",
        summary: "Cancel a drain",
        description: "Takes new clients again, and closes no further ones. Without a drain, nothing changes.",
        replies: &[json("DrainState", "The server does not drain. `connections`: those that are open.")],
        ..PUBLIC
    },
    Operation {
        path: "/v1/backup",
        id: "backup",
        tag: "Server",
        summary: "Back up the store",
        description: "Streams the whole store while the server runs, as a file for `mesa restore`.",
        replies: &[text(200, "application/octet-stream", "The backup.")],
        store: Scope::Store,
        errors: &["backup_running", "backup_elsewhere"],
        ..PUBLIC
    },
    Operation {
        path: "/healthz",
        id: "checkAlive",
        summary: "Report that the process serves requests",
        description: "For liveness probes.",
        replies: &[text(200, "text/plain", "The process serves requests.")],
        ..PUBLIC
    },
    Operation {
        path: "/readyz",
        id: "checkReady",
        summary: "Report whether the server is ready",
        description: "For readiness probes.",
        replies: &[
            text(200, "text/plain", "Every part is ready."),
            text(503, "text/plain", "A line for each part that is not ready, with the reason."),
        ],
        ..PUBLIC
    },
    Operation {
        path: "/metrics",
        id: "scrapeMetrics",
        summary: "Return metrics for Prometheus",
        description: "Classic text of Prometheus, or `OpenMetrics` if the header `Accept` asks for it.",
        replies: &[text(200, "text/plain", "The metrics.")],
        ..PUBLIC
    },
    Operation {
        path: client_script::SCRIPT_PATH,
        id: "loadClient",
        summary: "Load the JavaScript client",
        description: "An ES module for web pages, Node, Deno and Bun.",
        replies: &[
            text(200, "text/javascript", "The module."),
            Reply { status: 304, text: "The copy named in `If-None-Match` is current.", kind: "", schema: "" },
        ],
        ..PUBLIC
    },
    Operation {
        path: client_script::TYPES_PATH,
        id: "loadClientTypes",
        summary: "Load the types of the JavaScript client",
        description: "For TypeScript.",
        replies: &[
            text(200, "application/typescript", "The types."),
            Reply { status: 304, text: "The copy named in `If-None-Match` is current.", kind: "", schema: "" },
        ],
        ..PUBLIC
    },
    Operation {
        path: DOCUMENT_PATH,
        id: "loadDocument",
        summary: "Load this description of the API",
        description: "An `OpenAPI` 3.1 document.",
        replies: &[Reply { status: 200, text: "The document.", kind: JSON, schema: "Document" }],
        ..PUBLIC
    },
    Operation {
        path: PAGE_PATH,
        id: "showDocs",
        summary: "Show this description as a page",
        description: "Works without scripts.",
        replies: &[text(200, "text/html", "The page.")],
        ..PUBLIC
    },
    Operation {
        path: STYLE_PATH,
        id: "loadDocsStyle",
        summary: "Load the style sheet of that page",
        description: "The page loads nothing else.",
        replies: &[text(200, "text/css", "The style sheet.")],
        ..PUBLIC
    },
];
