//! Describes the API: the `OpenAPI` document at `/openapi.json`, and a page for people at `/docs`.
//!
//! - `operations`: every operation, with its parameters, responses and errors
//! - `codes`: every error code, with its status and meaning
//! - `page`: renders the document as a page, without scripts
//!
//! The schemas are those of the types that the handlers read and write.

pub(super) mod codes;
mod operations;
mod page;

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{dispatch, drain, error_response, status, users};
use crate::metrics::VERSION;
use codes::{CODES, Code};
use operations::{Body, OPERATIONS, Operation, Reply};
pub(super) use operations::{DOCUMENT_PATH, PAGE_PATH, STYLE_PATH};

/// Nothing but the page's own style sheet is loaded, and no script runs.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
static DOCUMENT_TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&*DOCUMENT).expect("a value is JSON"));
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(&DOCUMENT));

/// Serves `GET /openapi.json`.
pub(super) async fn serve_document() -> Response {
    file("application/json", &DOCUMENT_TEXT)
}

/// Serves `GET /docs`.
pub(super) async fn serve_page() -> Response {
    file("text/html; charset=utf-8", &PAGE)
}

/// Serves `GET /docs/docs.css`.
pub(super) async fn serve_style() -> Response {
    file("text/css; charset=utf-8", include_str!("docs.css"))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    ];
    (headers, text).into_response()
}

/// Builds the document.
fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "mesa",
            "version": VERSION,
            "summary": "A message server that delivers also to offline users",
            "description": "The HTTP API for backends. Clients use a WebSocket on the same port. Requests under `/v1` need \
                            an API key. A path that answers GET also answers HEAD. Another method gets 405, and another path \
                            404.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": operations::TAGS.map(|(name, description)| json!({"name": name, "description": description})),
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A key of `api.keys`."},
            },
        },
    });
    mark_unsigned(&mut document);
    document
}

/// Corrects the format of unsigned numbers, for which `int64` would be too narrow.
fn mark_unsigned(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let is_unsigned = fields.get("minimum").and_then(Value::as_f64).is_some_and(|minimum| minimum >= 0.0);
            if let (true, Some(Value::String(format))) = (is_unsigned, fields.get_mut("format"))
                && format.starts_with("int")
            {
                format.insert(0, 'u');
            }
            fields.values_mut().for_each(mark_unsigned);
        }
        Value::Array(items) => items.iter_mut().for_each(mark_unsigned),
        _ => {}
    }
}

/// Returns the schemas of all requests and responses.
fn schemas() -> BTreeMap<String, Value> {
    let mut schemas = BTreeMap::new();
    add::<dispatch::DispatchBody<'_>>(&mut schemas);
    add::<dispatch::DispatchResult>(&mut schemas);
    add::<error_response::ErrorBody<'_>>(&mut schemas);
    add::<drain::DrainBody>(&mut schemas);
    add::<drain::DrainState>(&mut schemas);
    add::<status::Status>(&mut schemas);
    add::<users::User<'_>>(&mut schemas);
    add::<users::UserPage<'_>>(&mut schemas);
    add::<users::MessagePage>(&mut schemas);
    add::<users::Cleared>(&mut schemas);
    add::<users::Erased>(&mut schemas);
    add::<users::Disconnected>(&mut schemas);
    schemas.insert("Document".to_owned(), json!({"type": "object", "description": "An OpenAPI document."}));
    let codes: Vec<_> = CODES.iter().map(|code| code.name).collect();
    if let Some(error) = schemas.get_mut("ErrorDetail") {
        error["properties"]["code"]["enum"] = codes.into();
    }
    schemas
}

/// Adds the schema of a type, and those that it refers to.
fn add<T: ToSchema>(schemas: &mut BTreeMap<String, Value>) {
    let mut all = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut all);
    schemas.extend(all.into_iter().map(|(name, schema)| (name, json!(schema))));
}

/// Describes an operation.
fn describe(operation: &Operation) -> Value {
    let is_guarded = operation.path.starts_with("/v1/");
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": parameters(operation),
        "responses": responses(operation),
        "security": if is_guarded { json!([{"apiKey": []}]) } else { json!([]) },
    });
    if !operation.bodies.is_empty() {
        let content: Map<_, _> = operation.bodies.iter().map(|body| (body.kind.to_owned(), media(body))).collect();
        described["requestBody"] = json!({"required": !operation.body_is_optional, "content": content});
    }
    described
}

fn media(body: &Body) -> Value {
    json!({"schema": schema(body.schema), "example": body.json_example()})
}

/// Returns a reference to a schema. Content that is not JSON is text.
fn schema(name: &str) -> Value {
    if name.is_empty() { json!({"type": "string"}) } else { json!({"$ref": format!("#/components/schemas/{name}")}) }
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let mut parameters: Vec<Value> = (operation.parameters)().into_iter().map(|parameter| json!(parameter)).collect();
    if operation.path.contains("{id}") {
        parameters.push(json!({
            "name": "id", "in": "path", "required": true, "description": "User id, percent-encoded.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        }));
    }
    parameters
}

fn responses(operation: &Operation) -> Map<String, Value> {
    let mut responses = Map::new();
    for Reply { status, text, kind, schema: name } in operation.replies {
        let mut reply = json!({"description": text});
        if !kind.is_empty() {
            reply["content"][*kind] = json!({"schema": schema(name)});
        }
        responses.insert(status.to_string(), reply);
    }
    let mut errors: BTreeMap<u16, Vec<&Code>> = BTreeMap::new();
    for code in CODES.iter().filter(|code| operation.may_answer(code)) {
        errors.entry(code.status).or_default().push(code);
    }
    for (status, codes) in errors {
        let lines: Vec<_> = codes.iter().map(|code| format!("`{}`: {}", code.name, code.meaning)).collect();
        let names: Vec<_> = codes.iter().map(|code| code.name).collect();
        let reply = responses.entry(status.to_string()).or_insert_with(|| json!({"description": ""}));
        let known = reply["description"].as_str().unwrap_or_default();
        let separator = if known.is_empty() { "" } else { " Or: " };
        reply["description"] = format!("{known}{separator}{}", lines.join("; ")).into();
        reply["content"]["application/json"] = json!({"schema": {"allOf": [
            schema("Error"),
            {"properties": {"error": {"properties": {"code": {"enum": names}}}}},
        ]}});
        for (name, description) in error_headers(status) {
            reply["headers"][*name] = json!({"description": description, "schema": {"type": "string"}});
        }
    }
    responses
}

/// Returns the headers of an error response.
fn error_headers(status: u16) -> &'static [(&'static str, &'static str)] {
    match StatusCode::from_u16(status) {
        Ok(StatusCode::UNAUTHORIZED) => &[("WWW-Authenticate", "`Bearer`.")],
        Ok(StatusCode::TOO_MANY_REQUESTS) => &[("Retry-After", "Seconds after which to retry.")],
        Ok(StatusCode::SERVICE_UNAVAILABLE) => &[("Retry-After", "With `busy`: seconds after which to retry.")],
        _ => &[],
    }
}
