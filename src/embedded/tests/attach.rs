//! Tests that the question whether an attach needs the disk does not wait for the disk itself.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use super::intercept::Intercept;
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::Table,
            memory::{self, Memory},
        },
        wal::contract::Wal as _,
    },
    message::{Payload, UserId},
    store::Append,
};

/// Name of the thread whose reads of users wait.
const READER: &str = "reader";

/// Longest time that a step of the test takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Tables in memory. A read of a user's row on the thread [`READER`] waits for `gate`.
struct SlowReads {
    tables: Memory,
    reading: mpsc::SyncSender<()>,
    gate: Arc<Mutex<()>>,
}

impl Intercept for SlowReads {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, _: &bytes::Bytes) {
        if table == Table::Users && thread::current().name() == Some(READER) {
            _ = self.reading.try_send(());
            drop(self.gate.lock());
        }
    }
}

#[tokio::test]
async fn is_in_memory_during_a_read_of_another_user_does_not_wait() {
    // More users than shards, so that the shard of the read has some.
    const USERS: usize = 1000;
    let user = |id: &str| UserId::new(id).unwrap();
    let tables = Memory::default();
    // Flushed, so that the second start does not load the user's log from the write-ahead log.
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let store = memory::open(&tables, Options { tuning, ..Options::default() }).unwrap();
    store.append_all(vec![Append::new(Payload::encode(0, None, None).unwrap(), vec![user("a")])]).await.unwrap();
    let is_flushed = async {
        while tables.record_numbers().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(STEP_TIMEOUT, is_flushed).await.expect("a flush");
    store.close().await.unwrap();

    let (gate, (reading, is_reading)) = (Arc::new(Mutex::new(())), mpsc::sync_channel(1));
    let slow = SlowReads { tables, reading, gate: gate.clone() };
    let store = embedded::open(Arc::new(slow), Options::default()).unwrap();
    let users: Vec<_> = (0..USERS).map(|n| user(&format!("user-{n}"))).collect();
    for user in &users {
        store.attach(user, None).unwrap();
    }
    let closed = gate.lock();
    let reader = store.clone();
    let reader = thread::Builder::new().name(READER.to_owned()).spawn(move || reader.state(&user("a"))).unwrap();
    is_reading.recv_timeout(STEP_TIMEOUT).unwrap();
    let (sender, answers) = mpsc::channel();
    let asked = store.clone();
    let asking =
        thread::spawn(move || sender.send(users.iter().filter(|user| asked.is_in_memory(user)).count()).unwrap());
    let in_memory = answers.recv_timeout(STEP_TIMEOUT);
    // Opened before the check, so that a failure ends the threads too.
    drop(closed);
    let in_memory = in_memory.expect("no answer while another user is read");
    assert!((USERS / 2..USERS).contains(&in_memory), "{in_memory} of {USERS}, without those in the shard of the read");
    asking.join().unwrap();
    assert_eq!(reader.join().unwrap().unwrap().pending, 1);
    store.close().await.unwrap();
}
