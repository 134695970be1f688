//! Reads the configuration file: JSON5 with bounded size and depth, and no key twice in one object.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::error::{Problem, excerpt};
use crate::util::read_bounded::read_bounded;

/// Largest configuration file, in bytes. Without the limit, a wrong path could fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Deepest nesting in the file. The JSON5 parser recurses without a bound of its own. The deepest key has four levels.
const FILE_DEPTH_MAX: usize = 32;

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> Result<Map<String, Value>, Problem> {
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
    parse(&text).map_err(|problem| problem.with_origin(&name))
}

/// Parses a configuration.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, Problem> {
    let is_blank = |line: &str| line.trim().is_empty() || line.trim().starts_with("//");
    if text.lines().all(is_blank) {
        return Err(Problem::new(
            "the configuration file is empty; write at least {}, or let `mesa config init` write a new file",
        ));
    }
    let Tree(value) = json5::from_str(text).map_err(|error| {
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

/// A value with bounded depth, and no key twice in one object.
struct Tree(Value);

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
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON5 value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(inner)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` is in this object twice", excerpt(&key))));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}
