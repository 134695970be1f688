//! Reads the connected users, and counts the entries of the sled trees.

use std::io;

use super::findings::{ConnectedUser, Damage};
use crate::embedded::{
    offline::{reader::OfflineReader, sled_file::TABLES},
    tables::{contract::Table, schema::Connections},
};

/// Counts the entries of each tree, in the order of the names in the code.
pub(super) fn count_entries(reader: &OfflineReader) -> io::Result<Vec<(&'static str, u64)>> {
    let count = |table| reader.keys(table).try_fold(0, |count, key| key.map(|_| count + 1));
    TABLES.iter().map(|(name, table)| Ok((*name, count(*table)?))).collect()
}

/// Reads the users with connections, in the order of their ids, and the rows that cannot be read.
pub(super) fn read_connected(reader: &OfflineReader) -> io::Result<(Vec<ConnectedUser>, Vec<Damage>)> {
    let (mut users, mut damage) = (Vec::new(), Vec::new());
    for pair in reader.pairs(Table::Connected, &[]) {
        let (key, value) = pair?;
        let user = String::from_utf8_lossy(&key).into_owned();
        match Connections::decode(&value) {
            Ok(Connections::V1 { since_ms, count }) => users.push(ConnectedUser { user, since_ms, connections: count }),
            Err(error) => {
                let what = format!("the row of its connections cannot be read: {error}");
                damage.push(Damage { place: "connected", key: String::new(), what, user: Some(user) });
            }
        }
    }
    Ok((users, damage))
}
