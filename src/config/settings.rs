//! Settings under their dotted keys, each with where it came from, and one source laid over another.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    error::{Problem, shown},
    schema::{self, Key},
};

/// A value and where it was set.
pub(super) struct Entry {
    pub value: Value,
    pub origin: String,
}

/// What one source says, or several laid over each other.
#[derive(Default)]
pub(super) struct Settings {
    entries: BTreeMap<&'static str, Entry>,
}

impl Settings {
    pub fn set(&mut self, key: &'static Key, value: Value, origin: &str) {
        self.entries.insert(key.name, Entry { value, origin: origin.to_owned() });
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Whether `name` is set, and to something.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|entry| !entry.value.is_null())
    }

    /// Where `name` was set.
    pub fn origin(&self, name: &str) -> Option<&str> {
        self.get(name).map(|entry| entry.origin.as_str())
    }

    /// Where each of the keys that are set was set.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.entries.values().map(|entry| entry.origin.as_str())
    }

    /// Lays `above` over this: where both speak, `above` holds. A list is one value and replaces the other.
    pub fn overlay(&mut self, above: Self) {
        self.entries.extend(above.entries);
    }

    /// Takes in the objects of a file.
    pub fn flatten(&mut self, map: Map<String, Value>, origin: &str, problems: &mut Vec<Problem>) {
        self.flatten_section("", map, origin, problems);
    }

    /// Recurses as deep as the table of keys has groups.
    fn flatten_section(&mut self, section: &str, map: Map<String, Value>, origin: &str, problems: &mut Vec<Problem>) {
        for (word, value) in map {
            let name = if section.is_empty() { word.clone() } else { format!("{section}.{word}") };
            if word.contains('.') {
                let text =
                    format!("`{}` has a dot in it; write groups as objects: sync: {{ enabled: true }}", shown(&word));
                problems.push(Problem::new(text).from(origin));
            } else if let Some(key) = schema::find(&name) {
                self.set(key, value, origin);
            } else if schema::is_section(&name) {
                match value {
                    Value::Object(map) => self.flatten_section(&name, map, origin, problems),
                    Value::Null => {}
                    other => {
                        let found = schema::found(&other, true);
                        problems.push(Problem::new(format!("{name} must be an object, but is {found}")).from(origin));
                    }
                }
            } else {
                problems.push(Problem::new(schema::unknown(&name)).from(origin));
            }
        }
    }
}
