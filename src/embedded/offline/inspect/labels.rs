//! Names the keys of lost ranges, for operators.

use crate::embedded::{
    offline::sled_file::LostKeys,
    outbox,
    tables::{contract::Table, schema::wal_key},
};

/// Names the table and the range of lost keys.
pub fn lost_range(lost: &LostKeys) -> (&'static str, String) {
    let LostKeys { table, from, to } = lost;
    let (place, label): (_, fn(&[u8]) -> String) = match table {
        Table::Log => ("value-log", user_label),
        Table::Users => ("users", user_label),
        Table::Meta => ("meta", meta_label),
        Table::Ids => ("ids", record_label),
        Table::Outbox => ("outbox", outbox::key_label),
        Table::Connected => ("connected", user_label),
        Table::Bodies => ("bodies", body_label),
    };
    let range = match (from.is_empty(), to.is_empty()) {
        (true, true) => "all of it".into(),
        (true, false) => format!("all before {}", label(to)),
        (false, true) => format!("all from {} on", label(from)),
        (false, false) => format!("all from {} to {}", label(from), label(to)),
    };
    (place, range)
}

/// Names the record of a shared body.
fn body_label(key: &[u8]) -> String {
    record_label(key.get(1..).unwrap_or_default())
}

fn record_label(key: &[u8]) -> String {
    // A key that separates two pages is truncated after the first byte in which they differ.
    let mut padded = wal_key(0);
    let length = key.len().min(8);
    padded[..length].copy_from_slice(&key[..length]);
    format!("record {}", u64::from_be_bytes(padded))
}

fn meta_label(key: &[u8]) -> String {
    format!("key {:?}", String::from_utf8_lossy(key))
}

fn user_label(key: &[u8]) -> String {
    let id = key.split(|byte| *byte == 0).next().unwrap_or(key);
    format!("user {:?}", String::from_utf8_lossy(id))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::embedded::tables::schema::log_key;

    #[test]
    fn lost_range_is_named_in_terms_of_its_table() {
        let named = |table, from: &[u8], to: &[u8]| {
            lost_range(&LostKeys { table, from: Bytes::copy_from_slice(from), to: Bytes::copy_from_slice(to) })
        };
        let event = [b"e".as_slice(), &300_u64.to_be_bytes(), &[0, 0]].concat();
        let expected = [
            (named(Table::Users, b"", b""), ("users", "all of it")),
            (named(Table::Users, b"ali", b""), ("users", "all from user \"ali\" on")),
            (named(Table::Connected, b"", b"bob"), ("connected", "all before user \"bob\"")),
            (named(Table::Log, &log_key("a", 7), b"bob"), ("value-log", "all from user \"a\" to user \"bob\"")),
            (named(Table::Meta, b"clock", b"o"), ("meta", "all from key \"clock\" to key \"o\"")),
            (named(Table::Ids, &wal_key(258)[..7], b""), ("ids", "all from record 256 on")),
            (named(Table::Outbox, b"", &event), ("outbox", "all before event 300")),
            // Truncated keys.
            (named(Table::Outbox, &event[..9], b"l"), ("outbox", "all from event 300 to the counts of dropped events")),
            (named(Table::Outbox, b"e", b"e\0\0\0\0\0\0\x01"), ("outbox", "all from event 0 to event 256")),
            (
                named(Table::Outbox, b"lost", b"w"),
                (
                    "outbox",
                    "all from the counts of dropped events to the sequence reported as undelivered of user \"\"",
                ),
            ),
            (
                named(Table::Outbox, b"wbob", b""),
                ("outbox", "all from the sequence reported as undelivered of user \"bob\" on"),
            ),
        ];
        for ((place, range), (expected_place, expected_range)) in expected {
            assert_eq!((place, range.as_str()), (expected_place, expected_range));
        }
    }
}
