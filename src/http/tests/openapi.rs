//! Tests that the description of the API is complete and true: routes, statuses, content types and bodies.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

async fn document(api: &TestApi) -> Value {
    let answer = api.call("GET", "/openapi.json", &[("authorization", "")], Body::empty()).await;
    assert_eq!((answer.status, answer.content_type()), (StatusCode::OK, "application/json"));
    answer.json()
}

/// Returns the path and the method of every operation.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    let all = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().expect("methods").keys().map(|method| (path.clone(), method.to_uppercase()))
    });
    all.collect()
}

/// Returns the paths of the router, which only its debug text tells.
fn routes(api: &TestApi) -> BTreeSet<String> {
    let text = format!("{:?}", api.http.router);
    let quoted = text.split('"').skip(1).step_by(2);
    let paths: BTreeSet<String> = quoted.filter(|part| part.starts_with('/')).map(str::to_owned).collect();
    assert!(paths.contains("/healthz") && paths.contains("/v1/users/{id}"), "{text}");
    // The path of the fallback.
    paths
        .into_iter()
        .filter(|path| !path.contains("__private") && path != "/" && path != "/{*__private__axum_fallback}")
        .collect()
}

#[tokio::test]
async fn document_has_every_route_and_no_other() {
    let api = TestApi::new();
    let document = document(&api).await;
    let mut routed = BTreeSet::new();
    for path in routes(&api) {
        let answer = api.call("PATCH", &path.replace("{id}", "alice"), &[], Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        // Whatever its query: a client must not correct the query first.
        let answer = api.call("TRACE", &format!("{}?x=1&x", path.replace("{id}", "alice")), &[], Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allow = answer.headers.get(header::ALLOW).expect("allowed methods").to_str().expect("ASCII").to_owned();
        let methods = allow.split(',').filter(|method| *method != "HEAD");
        routed.extend(methods.map(|method| (path.clone(), method.to_owned())));
    }
    assert_eq!(operations(&document), routed);
    let described = operations(&document).into_iter().filter(|(path, _)| path.starts_with("/v1/"));
    let described = described.map(|(path, method)| {
        let parameters = document["paths"][&path][method.to_lowercase()]["parameters"].as_array().expect("a list");
        let query = parameters.iter().filter(|parameter| parameter["in"] == "query");
        let names = query.map(|parameter| parameter["name"].as_str().expect("a name").to_owned());
        (method, path, names.collect::<BTreeSet<_>>())
    });
    let checked = super::super::parameters::ROUTE_PARAMETERS.iter().map(|(method, path, names)| {
        (method.to_string(), (*path).to_owned(), names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
    });
    assert_eq!(
        described.collect::<BTreeSet<_>>(),
        checked.collect::<BTreeSet<_>>(),
        "the parameters that are not rejected"
    );
}

#[tokio::test]
async fn document_has_no_dangling_reference_and_no_repeated_id() {
    let document = document(&TestApi::new()).await;
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap_or_default();
        assert!(schemas.contains_key(name), "no schema {name}");
    }
    let mut ids = BTreeSet::new();
    for (path, method) in operations(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        let id = operation["operationId"].as_str().expect("an id");
        assert!(ids.insert(id.to_owned()), "{id}");
        for field in ["summary", "description"] {
            assert!(operation[field].as_str().is_some_and(|text| text.len() > 5), "{id}: {field}");
        }
        for parameter in operation["parameters"].as_array().expect("parameters") {
            assert!(parameter["description"].as_str().is_some_and(|text| !text.is_empty()), "{id}: {parameter}");
        }
    }
    for (name, schema) in schemas {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_described = |schema: &Value| schema["description"].is_string() || !schema["$ref"].is_null();
            let is_list = property["type"] == "array";
            assert!(is_described(property) || is_list || property["oneOf"].is_array(), "{name}.{field}: {property}");
        }
    }
}

/// Returns why a value does not match a schema.
fn mismatch(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/components/schemas/").expect("a local schema");
        return mismatch(document, &document["components"]["schemas"][name], value, at);
    }
    if let Some(all) = schema["allOf"].as_array() {
        return all.iter().find_map(|schema| mismatch(document, schema, value, at));
    }
    if let Some(alternatives) = schema["oneOf"].as_array() {
        let matching = alternatives.iter().filter(|schema| mismatch(document, schema, value, at).is_none()).count();
        return (matching != 1).then(|| format!("{at}: {value} matches {matching} of {schema}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_kind = |expected: &Value| expected == kind || expected == "number" && kind == "integer";
    let right = match &schema["type"] {
        Value::Null => true,
        Value::Array(kinds) => kinds.iter().any(is_kind),
        expected => is_kind(expected),
    };
    let in_enum = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    if !right || !in_enum {
        return Some(format!("{at}: {value} is not {schema}"));
    }
    if let Some(items) = value.as_array() {
        let mut items = items.iter().enumerate();
        return items.find_map(|(n, item)| mismatch(document, &schema["items"], item, &format!("{at}[{n}]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
        return Some(format!("{at}: {missing} is missing in {value}"));
    }
    let properties = schema["properties"].as_object()?;
    let is_part = !schema["type"].is_string();
    fields.iter().find_map(|(name, field)| match properties.get(name) {
        Some(property) => mismatch(document, property, field, &format!("{at}.{name}")),
        None => (!is_part).then(|| format!("{at}: {name} is not described")),
    })
}

/// Checks a response against its operation. Returns the id of the operation, and the status.
fn check(document: &Value, method: &str, route: &str, answer: &Answer) -> (String, u16) {
    let operation = &document["paths"][route][method.to_lowercase()];
    let status = answer.status.as_u16();
    let reply = &operation["responses"][status.to_string()];
    assert!(reply.is_object(), "{method} {route}: {status} is not described: {}", answer.text());
    let kind = answer.content_type().split(';').next().unwrap_or_default();
    let expected = reply["content"].as_object().map(|content| content.keys().cloned().collect::<Vec<_>>());
    assert!(
        expected.as_ref().map_or(kind.is_empty(), |expected| expected.iter().any(|one| one == kind)),
        "{method} {route}: {status} has {kind:?}, expected {expected:?}"
    );
    if kind == "application/json" {
        let wrong = mismatch(document, &reply["content"][kind]["schema"], &answer.json(), "body");
        assert_eq!(wrong, None, "{method} {route}: {status}");
    }
    (operation["operationId"].as_str().expect("an id").to_owned(), status)
}

#[tokio::test]
async fn responses_of_every_operation_match_the_document() {
    const JSON: (&str, &str) = ("content-type", "application/json");
    let api = TestApi::new();
    let document = document(&api).await;
    let long = "x".repeat(300);
    let message = |bytes: usize| json!({"message": {"d": "x".repeat(bytes)}, "recipients": ["a"]}).to_string();
    let wrong_key = ("authorization", "Bearer wrong-key-wrong-key");
    let good = r#"{"message":{"d":[1],"t":"T"},"recipients":["alice","bob",""],"id":"i"}"#;
    let mut seen = BTreeSet::new();
    let alice = crate::message::UserId::new("alice").unwrap();
    let phone = crate::message::DeviceId::new("phone").unwrap();
    let connected = api.hub.connect();
    let attach = crate::hub::Attach { device: Some(phone), ..crate::hub::Attach::default() };
    let session = connected.attach(alice, attach, std::time::Instant::now()).unwrap();
    for (method, route, path, headers, body) in [
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON][..], good),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON], good),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON], "{"),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON], "[]"),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON], r#"{"message":{"op":3},"recipients":[]}"#),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[JSON], &message(70_000)),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[("content-type", "text/plain")], good),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[("content-encoding", "gzip")], good),
        ("POST", "/v1/dispatch", "/v1/dispatch?x=1", &[JSON], good),
        ("POST", "/v1/dispatch", "/v1/dispatch", &[("authorization", "")], good),
        ("GET", "/v1/users", "/v1/users", &[], ""),
        ("GET", "/v1/users", "/v1/users?online=true&limit=1", &[], ""),
        ("GET", "/v1/users", "/v1/users?online=x", &[], ""),
        ("GET", "/v1/users", "/v1/users?limit=0", &[], ""),
        ("GET", "/v1/users", &format!("/v1/users?cursor={long}"), &[], ""),
        ("GET", "/v1/users", "/v1/users", &[wrong_key], ""),
        ("GET", "/v1/users/{id}", "/v1/users/alice", &[], ""),
        ("GET", "/v1/users/{id}", "/v1/users/bob", &[], ""),
        ("GET", "/v1/users/{id}", "/v1/users/nobody", &[], ""),
        ("GET", "/v1/users/{id}", "/v1/users/%00", &[], ""),
        ("GET", "/v1/users/{id}", "/v1/users/%ff", &[], ""),
        ("GET", "/v1/users/{id}", "/v1/users/", &[], ""),
        ("GET", "/v1/users/{id}/messages", "/v1/users/alice/messages", &[], ""),
        ("GET", "/v1/users/{id}/messages", "/v1/users/nobody/messages?after=7", &[], ""),
        ("GET", "/v1/users/{id}/messages", "/v1/users/alice/messages?after=-1", &[], ""),
        ("DELETE", "/v1/users/{id}/messages", "/v1/users/alice/messages", &[], ""),
        ("DELETE", "/v1/users/{id}/messages", "/v1/users/*/messages", &[], ""),
        ("POST", "/v1/users/{id}/disconnect", "/v1/users/alice/disconnect", &[], ""),
        ("POST", "/v1/users/{id}/disconnect", "/v1/users/alice/disconnect?reason=bye", &[], ""),
        ("POST", "/v1/users/{id}/disconnect", &format!("/v1/users/alice/disconnect?reason={long}"), &[], ""),
        ("POST", "/v1/users/{id}/disconnect", "/v1/users/%20/disconnect?x", &[], ""),
        ("DELETE", "/v1/users/{id}", "/v1/users/bob", &[], ""),
        ("DELETE", "/v1/users/{id}", "/v1/users/bob", &[], ""),
        ("GET", "/v1/events", "/v1/events?all=maybe", &[], ""),
        ("GET", "/v1/events", "/v1/events", &[("last-event-id", "x")], ""),
        ("GET", "/v1/drain", "/v1/drain", &[], ""),
        ("POST", "/v1/drain", "/v1/drain", &[JSON], "{"),
        ("POST", "/v1/drain", "/v1/drain", &[JSON], r#"{"seconds":"1"}"#),
        ("GET", "/v1/status", "/v1/status", &[], ""),
        ("GET", "/v1/backup", "/v1/backup", &[], ""),
        ("GET", "/healthz", "/healthz", &[], ""),
        ("GET", "/readyz", "/readyz", &[], ""),
        ("GET", "/metrics", "/metrics", &[], ""),
        ("GET", "/client.js", "/client.js", &[], ""),
        ("GET", "/client.js", "/client.js", &[("if-none-match", "*")], ""),
        ("GET", "/client.d.ts", "/client.d.ts", &[], ""),
        ("GET", "/client.d.ts", "/client.d.ts", &[("if-none-match", "*")], ""),
        ("GET", "/openapi.json", "/openapi.json", &[], ""),
        ("GET", "/docs", "/docs", &[], ""),
        ("GET", "/docs/docs.css", "/docs/docs.css", &[], ""),
    ] {
        let answer = api.call(method, path, headers, body.to_owned()).await;
        let (id, status) = check(&document, method, route, &answer);
        seen.insert((id, status < 400));
    }
    drop(session);
    let drained = api.call("POST", "/v1/drain", &[JSON], r#"{"seconds":1}"#).await;
    let (id, status) = check(&document, "POST", "/v1/drain", &drained);
    seen.insert((id, status < 400));
    let cancelled = api.call("DELETE", "/v1/drain", &[], "").await;
    let (id, status) = check(&document, "DELETE", "/v1/drain", &cancelled);
    seen.insert((id, status < 400));
    assert!(!api.hub.is_draining() && !api.hub.health().is_not_ready("draining"), "the drain is cancelled");
    api.hub.health().not_ready("accept", "no file descriptors");
    check(&document, "GET", "/readyz", &api.get("/readyz").await);
    // The hub has no further events then, so the stream ends.
    api.hub.mark_drained();
    let (id, status) = check(&document, "GET", "/v1/events", &api.get("/v1/events?all=true").await);
    assert_eq!(status, 200);
    seen.insert((id, true));
    for (path, method) in operations(&document) {
        let id = document["paths"][&path][method.to_lowercase()]["operationId"].as_str().expect("an id");
        assert!(seen.contains(&(id.to_owned(), true)), "no success of {id} was checked");
    }
}

#[tokio::test]
async fn hand_written_result_has_every_field_of_its_schema() {
    let api = TestApi::new();
    let document = document(&api).await;
    let body = r#"{"message":{},"recipients":["alice","\u0000"]}"#;
    let answer = api.call("POST", "/v1/dispatch", &[], body).await.json();
    let schema =
        |name: &str| document["components"]["schemas"][name]["properties"].as_object().expect("fields").clone();
    let names = |fields: &serde_json::Map<String, Value>| fields.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(answer.as_object().expect("an object")), names(&schema("DispatchResult")));
    assert_eq!(names(answer["rejected"][0].as_object().expect("an object")), names(&schema("RejectedRecipient")));
}

#[tokio::test]
async fn page_shows_every_operation_and_loads_nothing_but_its_style() {
    let api = TestApi::new();
    let document = document(&api).await;
    let answer = api.call("GET", "/docs", &[("authorization", "")], Body::empty()).await;
    let policy = answer.headers.get(header::CONTENT_SECURITY_POLICY).expect("a policy").to_str().expect("ASCII");
    assert!(policy.starts_with("default-src 'none'; style-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let page = answer.text();
    for (path, method) in operations(&document) {
        let id = document["paths"][&path][method.to_lowercase()]["operationId"].as_str().expect("an id");
        assert!(page.contains(&format!("<details id=\"{id}\">")), "{id}");
        assert!(page.contains(&format!("http://127.0.0.1:4000{}&#39;", path.replace("{id}", "alice"))), "{id}: curl");
    }
    for name in document["components"]["schemas"].as_object().expect("schemas").keys() {
        assert!(page.contains(&format!("<details id=\"{name}\">")), "{name}");
    }
    for forbidden in ["<script", "style=", "src=", "onclick", "//cdn", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    for link in page.split("href=\"").skip(1).filter_map(|part| part.split('"').next()) {
        let is_local = link == "/docs/docs.css" || link == "/openapi.json" || link.starts_with('#');
        assert!(is_local, "{link}");
        if let Some(id) = link.strip_prefix('#') {
            assert!(page.contains(&format!("id=\"{id}\"")), "{link}");
        }
    }
}
