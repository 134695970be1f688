//! Stores layers of settings: values under dotted keys, each with its origin.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    error::{Problem, excerpt},
    schema::{self, Key},
};

/// A value with its origin: the file, variable or option that set it.
pub(super) struct Entry {
    pub value: Value,
    pub origin: String,
}

/// Settings of one source, or of several layers.
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

    /// Returns whether `name` is set to something other than null.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|entry| !entry.value.is_null())
    }

    /// Returns the origin of the value of `name`.
    pub fn origin(&self, name: &str) -> Option<&str> {
        self.get(name).map(|entry| entry.origin.as_str())
    }

    /// Returns the origins of all keys that are set.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.entries.values().map(|entry| entry.origin.as_str())
    }

    /// Adds a layer that overrides this one. A list is one value, and replaces the other list.
    pub fn overlay(&mut self, above: Self) {
        self.entries.extend(above.entries);
    }

    /// Adds the object of a file, with its groups as dotted keys.
    pub fn flatten(&mut self, map: Map<String, Value>, origin: &str, problems: &mut Vec<Problem>) {
        self.flatten_section("", map, origin, problems);
    }

    /// Adds one group. The recursion is as deep as the groups in the table of keys.
    fn flatten_section(&mut self, section: &str, map: Map<String, Value>, origin: &str, problems: &mut Vec<Problem>) {
        for (word, value) in map {
            let name = if section.is_empty() { word.clone() } else { format!("{section}.{word}") };
            if word.contains('.') {
                let text =
                    format!("`{}` has a dot in it; write groups as objects: sync: {{ enabled: true }}", excerpt(&word));
                problems.push(Problem::new(text).with_origin(origin));
            } else if let Some(key) = schema::find(&name) {
                self.set(key, value, origin);
            } else if schema::is_section(&name) {
                match value {
                    Value::Object(map) => self.flatten_section(&name, map, origin, problems),
                    Value::Null => {}
                    other => {
                        let found = schema::describe(&other, true);
                        problems.push(
                            Problem::new(format!("{name} must be an object, but is {found}")).with_origin(origin),
                        );
                    }
                }
            } else {
                problems.push(Problem::new(schema::unknown_key(&name)).with_origin(origin));
            }
        }
    }
}
