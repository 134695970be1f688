//! Reads the configuration file: JSON5 with bounded size and depth. Reports keys that an object has twice.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::error::{Problem, excerpt};
use crate::util::read_bounded::read_bounded;

/// Largest configuration file, in bytes. Without the limit, a wrong path could fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Deepest nesting in the file. The JSON5 parser recurses without a bound of its own. The deepest key has four levels.
const FILE_DEPTH_MAX: usize = 32;

/// Most keys that are reported because an object has them twice.
const DUPLICATES_MAX: usize = 20;

/// Reads the file at `path`. Adds a problem for each key that occurs twice in one object, and keeps its first value.
pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Result<Map<String, Value>, Problem> {
    let name = path.display().to_string();
    let bytes = read_bounded(path, FILE_BYTES_MAX).map_err(|error| {
        Problem::new(format!("the configuration file cannot be read: {error}; check the path and its permissions"))
            .with_origin(&name)
    })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let text = format!("a configuration file may have at most {FILE_BYTES_MAX} bytes; name the right file");
        return Err(Problem::new(text).with_origin(&name));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Problem::new(format!("the configuration file must be UTF-8 text, but byte {} is not", at + 1))
            .with_origin(&name)
    })?;
    let mut duplicates = Vec::new();
    let parsed = parse(&text, &mut duplicates);
    problems.extend(duplicates.into_iter().map(|problem: Problem| problem.with_origin(&name)));
    parsed.map_err(|problem| problem.with_origin(&name))
}

/// Parses a configuration. Adds a problem for each key that occurs twice in one object.
pub(super) fn parse(text: &str, problems: &mut Vec<Problem>) -> Result<Map<String, Value>, Problem> {
    let is_blank = |line: &str| line.trim().is_empty() || line.trim().starts_with("//");
    if text.lines().all(is_blank) {
        return Err(Problem::new(
            "the configuration file is empty; write at least {}, or let `mesa config init` write a new file",
        ));
    }
    let Tree(Node { value, repeated }) = json5::from_str(text).map_err(|error| {
        // If the text ends too early, the parser names the innermost open bracket, or no position.
        let position = error.position().unwrap_or(json5::Position { line: 0, column: 0 });
        if text.lines().nth(position.line).is_some_and(has_code) {
            return Problem::new(format!(
                "line {}: functions and code do not belong in the file, which is data (JSON5); write the value itself, or \
                 set its environment variable",
                position.line + 1
            ));
        }
        let what = match error.code().map(|code| code.to_string()) {
            Some(code) if code.starts_with("EOF") => "the text ends within what begins here".to_owned(),
            Some(code) => format!("this is not JSON5: {code}"),
            None => error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        };
        Problem::new(format!("line {}, column {}: {what}", position.line + 1, position.column + 1))
    })?;
    problems.extend(
        repeated.into_iter().map(|key| {
            Problem::new(format!("the key `{}` is in one object twice; remove one of the two", excerpt(&key)))
        }),
    );
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Problem::new(format!(
            "the configuration must be an object, {{ … }}, but is {}",
            super::schema::describe(&other, false)
        ))),
    }
}

/// Reports whether a line that is not JSON5 is probably JavaScript, as in the configuration of the original.
fn has_code(line: &str) -> bool {
    ["require(", "=>", "process.env", "function", "module.exports", "export ", "import ", "new ", "const ", "`"]
        .iter()
        .any(|mark| line.contains(mark))
}

/// A value with bounded depth.
struct Tree(Node);

/// A value, and the dotted names of the keys within it that an object has twice.
struct Node {
    value: Value,
    repeated: Vec<String>,
}

impl<T: Into<Value>> From<T> for Node {
    fn from(value: T) -> Self {
        Self { value: value.into(), repeated: Vec::new() }
    }
}

/// Adds the names of `inner` behind `place`, up to [`DUPLICATES_MAX`] in all.
fn extend(repeated: &mut Vec<String>, place: &str, inner: Vec<String>) {
    let room = DUPLICATES_MAX.saturating_sub(repeated.len());
    repeated.extend(inner.into_iter().take(room).map(|key| {
        let dot = if key.starts_with('[') { "" } else { "." };
        format!("{place}{dot}{key}")
    }));
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Level(FILE_DEPTH_MAX).deserialize(deserializer).map(Tree)
    }
}

/// Deserializes one value. Holds the number of levels that it may have.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.0.checked_sub(1) {
            Some(rest) => Ok(Self(rest)),
            None => Err(E::custom(format_args!("nested more than {FILE_DEPTH_MAX} deep"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON5 value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Value::Null.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        Number::from_f64(value)
            .map(|number| Value::Number(number).into())
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let inner = self.inner()?;
        let (mut list, mut repeated) = (Vec::new(), Vec::new());
        while let Some(item) = items.next_element_seed(inner)? {
            extend(&mut repeated, &format!("[{}]", list.len()), item.repeated);
            list.push(item.value);
        }
        Ok(Node { value: list.into(), repeated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let inner = self.inner()?;
        let (mut map, mut repeated) = (Map::new(), Vec::new());
        while let Some(key) = entries.next_key::<String>()? {
            let Node { value, repeated: inside } = entries.next_value_seed(inner)?;
            extend(&mut repeated, &key, inside);
            if !map.contains_key(&key) {
                map.insert(key, value);
            } else if repeated.len() < DUPLICATES_MAX {
                repeated.push(key);
            }
        }
        Ok(Node { value: map.into(), repeated })
    }
}
