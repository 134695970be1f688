//! Finds the first mistake in the fields of a dispatch, and describes it in terms of JSON.
//!
//! It runs only for a text that is not a dispatch, so it may parse the text a second time.

use serde_json::{Map, Value};

use crate::logging::excerpt;

/// Kind of a JSON value.
enum Kind {
    Any,
    Boolean,
    /// A whole number within these bounds.
    Whole(u64, u64),
    Text,
    /// An array of user ids.
    Users,
    Object(&'static Object),
}

/// An object with its name and its fields.
struct Object {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    kind: Kind,
    is_required: bool,
    may_be_null: bool,
}

const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, is_required: false, may_be_null: false }
}

const DISPATCH: Object = Object {
    name: "a dispatch",
    fields: &[
        Field { is_required: true, ..field("message", Kind::Object(&MESSAGE)) },
        Field { is_required: true, ..field("recipients", Kind::Users) },
        field("excluding", Kind::Users),
        Field { may_be_null: true, ..field("id", Kind::Text) },
    ],
};

const MESSAGE: Object = Object {
    name: "`message`",
    fields: &[
        field("op", Kind::Whole(0, u64::MAX)),
        field("d", Kind::Any),
        Field { may_be_null: true, ..field("t", Kind::Text) },
        Field { may_be_null: true, ..field("o", Kind::Object(&OPTIONS)) },
    ],
};

const OPTIONS: Object = Object {
    name: "`message.o`",
    fields: &[
        field("sync", Kind::Boolean),
        Field { may_be_null: true, ..field("ttl", Kind::Whole(1, u32::MAX as u64)) },
        Field { may_be_null: true, ..field("collapse", Kind::Text) },
    ],
};

/// Returns the first mistake; `None` if the fields are right, or the text is not JSON.
pub(super) fn find_mistake(text: &str) -> Option<String> {
    match serde_json::from_str(text).ok()? {
        Value::Object(fields) => DISPATCH.find_mistake("", &fields),
        other => Some(format!("a dispatch must be an object, not {}", describe(&other))),
    }
}

impl Object {
    fn find_mistake(&self, path: &str, fields: &Map<String, Value>) -> Option<String> {
        for name in fields.keys() {
            if !self.fields.iter().any(|field| field.name == name) {
                let known: Vec<_> = self.fields.iter().map(|field| format!("`{}`", field.name)).collect();
                let unknown = excerpt(name);
                return Some(format!("`{unknown}` is not a field of {}: it may have {}", self.name, known.join(", ")));
            }
        }
        self.fields.iter().find_map(|field| {
            let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
            match fields.get(field.name) {
                None => field.is_required.then(|| format!("`{path}` is missing")),
                Some(Value::Null) if field.may_be_null => None,
                Some(value) => field.kind.find_mistake(&path, value),
            }
        })
    }
}

impl Kind {
    fn find_mistake(&self, path: &str, value: &Value) -> Option<String> {
        let expected = match (self, value) {
            (Self::Any, _) | (Self::Boolean, Value::Bool(_)) | (Self::Text, Value::String(_)) => return None,
            (Self::Object(object), Value::Object(fields)) => return object.find_mistake(path, fields),
            (Self::Users, Value::Array(users)) => {
                let (at, wrong) = users.iter().enumerate().find(|(_, user)| !user.is_string())?;
                return Some(format!("`{path}[{at}]` must be a string, not {}", describe(wrong)));
            }
            (Self::Whole(least, most), Value::Number(number))
                if number.as_u64().is_some_and(|number| (*least..=*most).contains(&number)) =>
            {
                return None;
            }
            (Self::Boolean, _) => "true or false".to_owned(),
            (Self::Text, _) => "a string".to_owned(),
            (Self::Object(_), _) => "an object".to_owned(),
            (Self::Users, _) => "an array of user ids".to_owned(),
            (Self::Whole(least, u64::MAX), _) => format!("a whole number, {least} or more"),
            (Self::Whole(least, most), _) => format!("a whole number from {least} to {most}"),
        };
        Some(format!("`{path}` must be {expected}, not {}", describe(value)))
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => excerpt(value),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
