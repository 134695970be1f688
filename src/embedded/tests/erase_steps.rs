//! Tests of erasures with webhook events that stay.

use std::time::Duration;

use crate::{
    embedded::{
        options::Options,
        outbox::format::{Batch, event_key},
        tables::{
            contract::{Table, Tables as _},
            memory::{self, Memory},
        },
    },
    message::UserId,
    store::{Erasure, EventKind, OutboxEvent, OutboxOptions},
};

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn options() -> Options {
    let kinds = EventKind::CONFIGURABLE.to_vec();
    Options { outbox: Some(OutboxOptions { events: 1000, bytes: 1 << 20, kinds }), ..Options::default() }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} within 30 s"));
}

// covers: G2
#[tokio::test]
async fn accepted_events_next_to_erased_ones_leave_the_outbox_and_are_not_sent_again() {
    let layouts: [&[&[&str]]; 5] = [
        &[&["bob", "alice"]],
        &[&["bob"], &["alice"], &["alice"]],
        &[&["alice"], &["bob"]],
        &[&["alice", "bob", "alice"], &["alice"], &["bob", "bob", "alice", "alice"]],
        &[&["alice", "alice"], &["alice"]],
    ];
    for (layout, restarts) in layouts.iter().flat_map(|layout| [(layout, false), (layout, true)]) {
        let tables = Memory::default();
        let (mut first, mut expected) = (10, Vec::new());
        for batch in *layout {
            let event = |id: &&str| (1, Some(OutboxEvent::Expired { user: (*id).to_owned(), from: 1, to: 1 }));
            let stored = Batch::V1 { start: 1, events: batch.iter().map(event).collect() };
            tables.put(Table::Outbox, &event_key(first, 0), &stored.pieces()[0]).unwrap();
            expected.extend((first..).zip(*batch).filter(|(_, id)| **id == "bob").map(|(number, _)| number));
            first += batch.len() as u64;
        }
        let mut store = memory::open(&tables, options()).unwrap();
        assert_eq!(store.erase(&user("alice")).await.unwrap(), Erasure::Erased, "{layout:?}");
        if restarts {
            store.close().await.unwrap();
            store = memory::open(&tables, options()).unwrap();
        }
        let outbox = store.outbox().unwrap();
        let numbers: Vec<_> = outbox.read(0, 99, u64::MAX).unwrap().iter().map(|queued| queued.number).collect();
        assert_eq!(numbers, expected, "{layout:?}");
        // As the delivery of webhooks: up to the last event that the backend has accepted.
        numbers.iter().for_each(|number| outbox.remove(*number));
        wait_until(&format!("the outbox is empty after {layout:?}"), || outbox.status().events == 0).await;
        store.close().await.unwrap();
        let store = memory::open(&tables, options()).unwrap();
        assert_eq!(store.outbox().unwrap().read(0, 99, u64::MAX).unwrap().len(), 0, "{layout:?}");
        store.close().await.unwrap();
    }
}
