//! Renders the document as a page for people.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    codes::CODES,
    operations::{OPERATIONS, Operation, TAGS},
};

/// Renders the page.
pub fn render(document: &Value) -> String {
    let mut out = String::with_capacity(64 << 10);
    let version = text(&document["info"]["version"]);
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str(
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>mesa: HTTP API</title>\n",
    );
    out.push_str("<link rel=\"stylesheet\" href=\"/docs/docs.css\">\n</head>\n<body>\n<main>\n");
    add(
        &mut out,
        &[
            "<h1>mesa <small>",
            &escape(&version),
            "</small></h1>\n<p>",
            &prose(&text(&document["info"]["description"])),
            "</p>\n<p>The same as <a href=\"/openapi.json\">OpenAPI 3.1</a>.</p>\n",
        ],
    );
    for (tag, description) in TAGS {
        add(&mut out, &["<h2>", &escape(tag), "</h2>\n<p>", &prose(description), "</p>\n"]);
        for operation in OPERATIONS.iter().filter(|operation| operation.tag == tag) {
            render_operation(&mut out, operation, &document["paths"][operation.path][operation.method]);
        }
    }
    out.push_str("<h2>Error codes</h2>\n<div class=\"table\"><table>\n<tr><th>code<th>status<th>meaning\n");
    for code in CODES {
        render_row(&mut out, &[format!("<code>{}</code>", code.name), code.status.to_string(), prose(code.meaning)]);
    }
    out.push_str("</table></div>\n<h2>Schemas</h2>\n");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escape(name);
        add(&mut out, &["<details id=\"", &name, "\"><summary>", &name, "</summary>\n"]);
        render_schema(&mut out, schema);
        out.push_str("</details>\n");
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn add(out: &mut String, parts: &[&str]) {
    out.extend(parts.iter().copied());
}

fn render_operation(out: &mut String, operation: &Operation, described: &Value) {
    let method = operation.method.to_uppercase();
    add(
        out,
        &[
            "<details id=\"",
            operation.id,
            "\"><summary><code class=\"",
            operation.method,
            "\">",
            &method,
            "</code> <code>",
            &escape(operation.path),
            "</code> <span>",
            &prose(operation.summary),
            "</span></summary>\n<p>",
            &prose(operation.description),
            "</p>\n",
        ],
    );
    let parameters = described["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        out.push_str("<h3>Parameters</h3>\n<div class=\"table\"><table>\n<tr><th>name<th>in<th>type<th>meaning\n");
        for parameter in parameters {
            let is_required = parameter["required"] == true;
            let row = [
                format!(
                    "<code>{}</code>{}",
                    escape(&text(&parameter["name"])),
                    if is_required { " required" } else { "" }
                ),
                escape(&text(&parameter["in"])),
                kind(&parameter["schema"]),
                prose(&text(&parameter["description"])),
            ];
            render_row(out, &row);
        }
        out.push_str("</table></div>\n");
    }
    if let Some(content) = described["requestBody"]["content"].as_object() {
        out.push_str("<h3>Body</h3>\n<ul>\n");
        for (media, body) in content {
            add(out, &["<li><code>", &escape(media), "</code>: ", &kind(&body["schema"]), "\n"]);
        }
        out.push_str("</ul>\n");
    }
    out.push_str("<h3>Responses</h3>\n<div class=\"table\"><table>\n<tr><th>status<th>content<th>meaning\n");
    for (status, reply) in described["responses"].as_object().into_iter().flatten() {
        let content = reply["content"].as_object().into_iter().flatten();
        let content = content.map(|(media, body)| format!("<code>{}</code> {}", escape(media), kind(&body["schema"])));
        let row = [escape(status), content.collect::<Vec<_>>().join(", "), prose(&text(&reply["description"]))];
        render_row(out, &row);
    }
    out.push_str("</table></div>\n<h3>Example</h3>\n");
    add(out, &["<pre><code>", &escape(&curl(operation)), "</code></pre>\n</details>\n"]);
}

fn render_row(out: &mut String, cells: &[String]) {
    out.push_str("<tr>");
    cells.iter().for_each(|cell| add(out, &["<td>", cell]));
    out.push('\n');
}

fn render_schema(out: &mut String, schema: &Value) {
    let description = text(&schema["description"]);
    if !description.is_empty() {
        add(out, &["<p>", &prose(&description), "</p>\n"]);
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    out.push_str("<div class=\"table\"><table>\n<tr><th>field<th>type<th>meaning\n");
    for (name, property) in properties {
        let is_required = required.iter().any(|each| each == name);
        let row = [
            format!("<code>{}</code>{}", escape(name), if is_required { " required" } else { "" }),
            kind(property),
            prose(&text(&property["description"])),
        ];
        render_row(out, &row);
    }
    out.push_str("</table></div>\n");
}

/// Describes the type of a schema, with links to named ones.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    for (key, separator) in [("oneOf", " or "), ("allOf", " ")] {
        if let Some(all) = schema[key].as_array() {
            let kinds = all.iter().map(kind).filter(|kind| kind != "any value");
            return kinds.collect::<Vec<_>>().join(separator);
        }
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("array of {}", kind(&schema["items"])),
        Value::String(name) => escape(name),
        Value::Array(names) => {
            let names = names.iter().map(|name| {
                if name == "array" { format!("array of {}", kind(&schema["items"])) } else { escape(&text(name)) }
            });
            names.collect::<Vec<_>>().join(" or ")
        }
        _ => "any value".to_owned(),
    }
}

/// Returns a command that performs the operation.
fn curl(operation: &Operation) -> String {
    let mut command = String::from("curl -sS");
    if operation.path == "/v1/events" {
        command.push_str(" -N");
    }
    if operation.method != "get" && operation.bodies.is_empty() {
        _ = write!(command, " -X {}", operation.method.to_uppercase());
    }
    _ = write!(command, " 'http://127.0.0.1:4000{}'", operation.path.replace("{id}", "alice"));
    if operation.path.starts_with("/v1/") {
        command.push_str(" \\\n  -H 'Authorization: Bearer YOUR_API_KEY'");
    }
    if let Some(body) = operation.bodies.first() {
        _ = write!(command, " \\\n  -H 'Content-Type: {}' \\\n  -d '{}'", body.kind, body.example);
    }
    if operation.path == "/v1/backup" {
        command.push_str(" -o backup.mesa");
    }
    command
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Escapes a text, and turns its parts between backticks into code.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split('`').enumerate() {
        let part = escape(part);
        if at % 2 == 0 { out.push_str(&part) } else { add(&mut out, &["<code>", &part, "</code>"]) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_code_is_marked() {
        assert_eq!(prose("a <b> `c & d` e"), "a &lt;b&gt; <code>c &amp; d</code> e");
        assert_eq!(escape("\"'"), "&quot;&#39;");
    }
}
