//! Represents a JSON string of a peer that is forwarded unchanged, also if it is not valid Unicode.
//!
//! `"\ud83d"` is valid JSON, but no Rust string can hold it (see [`surrogates`]). Such a string stays raw JSON.
//! Code that needs a text gets none, or one with U+FFFD.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Unexpected},
};
use serde_json::{Number, value::RawValue};

use super::surrogates;

/// A JSON string: decoded, or as raw JSON if it has a lone surrogate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonString<'a> {
    /// The decoded string.
    Text(Cow<'a, str>),
    /// Raw JSON with quotation marks, because the string has a lone surrogate.
    Raw(Cow<'a, str>),
}

impl JsonString<'_> {
    /// Returns the text, if the string is valid Unicode.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Raw(_) => None,
        }
    }

    /// Returns the raw JSON, if the string is not valid Unicode.
    #[must_use]
    pub fn raw(&self) -> Option<&str> {
        match self {
            Self::Text(_) => None,
            Self::Raw(json) => Some(json),
        }
    }

    /// Returns the text, with U+FFFD in place of each lone surrogate.
    #[must_use]
    pub fn lossy(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            // The string is valid JSON. Only its lone surrogates prevented decoding.
            Self::Raw(json) => {
                Cow::Owned(serde_json::from_str(&surrogates::replace_lone_surrogates(json)).unwrap_or_default())
            }
        }
    }

    /// Appends the string as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            // A string always has a JSON form, and writing to a Vec cannot fail.
            Self::Text(text) => serde_json::to_writer(out, text).expect("a string is JSON"),
            Self::Raw(json) => out.extend_from_slice(json.as_bytes()),
        }
    }

    /// Returns its size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let (Self::Text(text) | Self::Raw(text)) = self;
        text.len()
    }

    /// Converts it to a string that borrows nothing.
    #[must_use]
    pub fn into_owned(self) -> JsonString<'static> {
        match self {
            Self::Text(text) => JsonString::Text(text.into_owned().into()),
            Self::Raw(json) => JsonString::Raw(json.into_owned().into()),
        }
    }

    /// Borrows the string.
    #[must_use]
    pub fn borrowed(&self) -> JsonString<'_> {
        match self {
            Self::Text(text) => JsonString::Text(Cow::Borrowed(text)),
            Self::Raw(json) => JsonString::Raw(Cow::Borrowed(json)),
        }
    }
}

impl<'a> From<&'a str> for JsonString<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl Serialize for JsonString<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Raw(json) => match serde_json::from_str::<&RawValue>(json) {
                Ok(raw) => raw.serialize(serializer),
                Err(_) => serializer.serialize_str(&self.lossy()),
            },
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonString<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Only `RawValue` of serde_json accepts lone surrogates and rejects control characters.
        let json = <&RawValue>::deserialize(deserializer)?.get();
        let inside = json.strip_prefix('"').and_then(|json| json.strip_suffix('"'));
        let inside = inside.ok_or_else(|| D::Error::invalid_type(unexpected(json), &"a string"))?;
        if !inside.contains('\\') {
            return Ok(Self::from(inside));
        }
        // The string is valid JSON, so decoding fails only because of lone surrogates.
        let text = serde_json::from_str::<String>(json);
        Ok(text.map_or(Self::Raw(json.into()), |text| Self::Text(text.into())))
    }
}

/// Describes JSON that is not a string.
fn unexpected(json: &str) -> Unexpected<'_> {
    match (json.as_bytes().first(), serde_json::from_str::<Number>(json)) {
        (Some(b'{'), _) => Unexpected::Map,
        (Some(b'['), _) => Unexpected::Seq,
        (Some(b't' | b'f'), _) => Unexpected::Bool(json == "true"),
        (_, Ok(number)) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Unexpected::Unsigned(number),
            (_, Some(number)) => Unexpected::Signed(number),
            _ => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        _ => Unexpected::Unit,
    }
}

/// Truncates the JSON of a string to `bytes_max` bytes, quotation marks included, without splitting an escape.
pub fn truncate(json: &str, bytes_max: usize) -> Cow<'_, str> {
    if json.len() <= bytes_max {
        return Cow::Borrowed(json);
    }
    let mut end = 1;
    while let Some(character) = json[end..].chars().next() {
        let bytes = match (character, json.as_bytes().get(end + 1)) {
            ('\\', Some(b'u')) => surrogates::ESCAPE_BYTES,
            ('\\', _) => 2,
            _ => character.len_utf8(),
        };
        if end + bytes + 1 > bytes_max {
            break;
        }
        end += bytes;
    }
    Cow::Owned(format!("{}\"", &json[..end]))
}

/// Deserializes a string, with U+FFFD in place of each lone surrogate.
///
/// Also works with a reader, and with a `serde_json::Value`, from which programs may deserialize a stored response.
pub fn lossy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text_of(&Box::<RawValue>::deserialize(deserializer)?)
}

/// Deserializes an optional string like [`lossy`].
pub fn lossy_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<Box<RawValue>>::deserialize(deserializer)?.map(|json| text_of(&json)).transpose()
}

fn text_of<E: Error>(json: &RawValue) -> Result<String, E> {
    serde_json::from_str(json.get()).map(|string: JsonString<'_>| string.lossy().into_owned()).map_err(E::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> JsonString<'_> {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn string_with_lone_surrogate_is_written_unchanged() {
        for (json, text) in [
            (r#""""#, Some("")),
            (r#""A\"\n\u0041""#, Some("A\"\nA")),
            (r#""\ud83d\ude00""#, Some("\u{1f600}")),
            (r#""\ud83d""#, None),
            (r#""é\"\ude00\\\ud83dé""#, None),
        ] {
            let string = read(json);
            assert_eq!(string.text(), text, "{json}");
            assert_eq!(string.raw().is_none(), text.is_some(), "{json}");
            assert_eq!(
                serde_json::to_string(&string).unwrap(),
                text.map_or_else(|| json.into(), |text| format!("{text:?}"))
            );
        }
        assert_eq!(read(r#""a\ud83db""#).lossy(), "a\u{fffd}b");
    }

    #[test]
    fn json_other_than_a_string_is_rejected() {
        for (json, expected) in [
            ("7", "integer `7`, expected a string"),
            ("-7", "integer `-7`, expected a string"),
            ("1.5", "floating point `1.5`, expected a string"),
            ("true", "boolean `true`, expected a string"),
            ("null", "null, expected a string"),
            ("[97]", "sequence, expected a string"),
            ("{}", "map, expected a string"),
            (r#""\ud83""#, "escape"),
            (r#""\x""#, "invalid escape"),
            ("\"a\nb\\n\"", "control character"),
            ("\"a", "EOF"),
        ] {
            let error = serde_json::from_str::<JsonString<'_>>(json).expect_err(json).to_string();
            assert!(error.contains(expected), "{json}: expected {expected:?} in {error:?}");
        }
        assert!(serde_json::from_slice::<JsonString<'_>>(b"\"\xed\xa0\xbd\"").is_err(), "WTF-8 is no UTF-8");
    }

    #[test]
    fn truncated_string_stays_valid_json() {
        let json = r#""é\ud83d\n\ude00x""#;
        for bytes_max in 2..20 {
            let short = truncate(json, bytes_max);
            assert!(
                short.len() <= bytes_max && surrogates::entries(&format!("{{\"s\":{short}}}")).is_some(),
                "{short}"
            );
        }
        assert_eq!((truncate(json, 12), truncate(json, 10)), (r#""é\ud83d\n""#.into(), r#""é\ud83d""#.into()));
        assert_eq!(truncate(json, json.len()), json);
    }

    proptest! {
        #[test]
        fn written_string_reads_back_equal(units in prop::collection::vec(prop::sample::select(vec![0x41_u16, 0xe9, 0xd83d, 0xde00, 0x5c, 0x22, 0xa]), 0..12)) {
            let escapes = units.iter().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat();
            let json = format!("\"{escapes}\"");
            let string = read(&json);
            let mut written = Vec::new();
            string.write(&mut written);
            let written = String::from_utf8(written).unwrap();
            prop_assert_eq!(&read(&written), &string);
            prop_assert_eq!(string.raw().is_some(), surrogates::has_lone_surrogate(&json));
            prop_assert_eq!(string.lossy(), String::from_utf16_lossy(&units));
        }
    }
}
