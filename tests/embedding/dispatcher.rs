//! Tests a dispatcher that retries failed requests, idempotently.

use std::{sync::Arc, time::Duration};

use mesa::{
    dispatcher::{Dispatch, DispatchError, Dispatcher, Retry},
    message::{DispatchId, Recipients},
    server::SendError,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    flaky_proxy::FlakyProxy,
    server::{KEY, TestServer, message, user_id, within},
    support::{
        http_receiver::{Receiver, Response},
        in_process::pending_numbers,
        server::{Home, KEY as HOME_KEY},
    },
};

fn fast_retry() -> Retry {
    let mut retry = Retry::default();
    (retry.timeout, retry.delay, retry.delay_max) =
        (Duration::from_secs(15), Duration::from_millis(5), Duration::from_millis(50));
    retry
}

fn to(user: &str) -> Recipients {
    user_id(user).into()
}

/// Connections break and the server is killed while dispatches are in progress.
// covers: G1
#[tokio::test(flavor = "multi_thread")]
async fn retry_over_cuts_and_kills_stores_each_dispatch_once() {
    const MESSAGES: u64 = 400;
    let home = Arc::new(Home::new());
    let server = home.start();
    let proxy = FlakyProxy::start(server.address).await;
    let dispatcher = Dispatcher::new(&format!("http://{}", proxy.address), HOME_KEY).unwrap().retrying(fast_retry());
    let (mut server, mut duplicates) = (Some(server), 0);
    for n in 0..MESSAGES {
        let (sent, to_alice) = (message(n), to("alice"));
        let sending = dispatcher.dispatch(&sent, &to_alice, &[]);
        let breaking = async {
            if n % 100 == 99 {
                server.take().unwrap().process.kill();
                let home = home.clone();
                let next = tokio::task::spawn_blocking(move || home.start()).await.unwrap();
                proxy.set_target(next.address);
                server = Some(next);
            } else if n % 3 == 0 {
                // Cuts at all stages of the call, from the connection to the response.
                for _ in 0..n % 40 {
                    tokio::task::yield_now().await;
                }
                proxy.cut();
            }
        };
        let (result, ()) = tokio::join!(sending, breaking);
        let result = result.unwrap();
        assert_eq!((result.recipients, result.offline, result.rejected.len()), (1, 1, 0));
        duplicates += u32::from(result.duplicate);
    }
    assert_eq!(pending_numbers(&dispatcher, "alice").await, (0..MESSAGES).collect::<Vec<_>>());
    println!("{duplicates} dispatches were committed although their response was lost");

    // Many dispatches at once, while all connections are cut several times.
    let dispatches = (0..5_000).map(|n| Dispatch::new(message(n), to("bob")));
    let breaking = async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(15)).await;
            proxy.cut();
        }
    };
    let (results, ()) = tokio::join!(dispatcher.dispatch_all(dispatches), breaking);
    let results = results.unwrap();
    assert!(results.len() == 5_000 && results.iter().all(Result::is_ok), "{} results", results.len());
    assert_eq!(pending_numbers(&dispatcher, "bob").await, (0..5_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn transient_errors_are_retried_with_the_same_id() {
    let receiver = Receiver::start();
    let url = format!("http://{}", receiver.address);
    let rejection = |status, code: &str| {
        let body = json!({ "error": { "code": code, "message": "no" } }).to_string();
        Response::With(status, "content-type: application/json\r\n".into(), body)
    };
    let accepted = || Response::json(json!({ "recipients": 1, "online": 0, "offline": 1 }));
    let dispatcher = Dispatcher::new(&url, KEY).unwrap().retrying(fast_retry());
    receiver.script([
        rejection(503, "shutting_down"),
        rejection(507, "full"),
        Response::Close,
        Response::HalfWay(200),
        accepted(),
    ]);
    dispatcher.dispatch(&message(1), &to("alice"), &[]).await.unwrap();
    let requests = receiver.requests();
    let ids: Vec<_> = requests.iter().map(|request| request.json()["id"].clone()).collect();
    assert_eq!(ids.len(), 5);
    assert!(ids[0].as_str().is_some_and(|id| id.len() == 32) && ids.iter().all(|id| *id == ids[0]), "{ids:?}");

    // A dispatch with an id keeps it. Another dispatch gets another id.
    receiver.script([rejection(503, "shutting_down"), accepted(), accepted()]);
    let named = Dispatch::new(message(2), to("alice")).id(DispatchId::new("order-7").unwrap());
    dispatcher.send(&named).await.unwrap();
    dispatcher.dispatch(&message(3), &to("alice"), &[]).await.unwrap();
    let ids_after: Vec<_> = receiver.requests().iter().skip(5).map(|request| request.json()["id"].clone()).collect();
    assert_eq!(ids_after[..2], ["order-7", "order-7"]);
    assert!(ids_after[2] != ids[0] && ids_after[2].is_string());

    for (status, code) in [(401, "unauthorized"), (422, "bad_message"), (500, "internal"), (413, "message_too_large")] {
        let before = receiver.requests().len();
        receiver.script([rejection(status, code)]);
        let error = dispatcher.dispatch(&message(1), &to("alice"), &[]).await.unwrap_err();
        assert!(matches!(&error, DispatchError::Rejected { status: returned, .. } if *returned == status), "{error:?}");
        assert_eq!(receiver.requests().len(), before + 1, "{code} is not retried");
    }
    // A dispatcher without retries sends no id.
    let before = receiver.requests().len();
    receiver.script([rejection(503, "shutting_down")]);
    let plain = Dispatcher::new(&url, KEY).unwrap();
    assert!(plain.dispatch(&message(1), &to("alice"), &[]).await.unwrap_err().is_transient());
    assert_eq!(receiver.requests().len(), before + 1);
    assert!(receiver.requests()[before].json().get("id").is_none());
}

#[tokio::test]
async fn retries_end_at_their_timeout() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut retry = fast_retry();
    retry.timeout = Duration::from_millis(300);
    let dispatcher = Dispatcher::new(&url, KEY).unwrap().retrying(retry);
    let error = within("last attempt", dispatcher.dispatch(&message(1), &to("alice"), &[])).await.unwrap_err();
    assert!(matches!(error, DispatchError::Unreachable { .. }), "{error:?}");
    let all = dispatcher.dispatch_all([Dispatch::new(message(1), to("alice"))]);
    assert!(matches!(within("last attempt", all).await, Err(DispatchError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatch_to_a_full_store_succeeds_after_space_is_freed() {
    let server = TestServer::start(|builder| builder.configure(|config| config.store.max_bytes = 1 << 20)).await;
    let dispatcher = Dispatcher::new(&format!("http://{}", server.address), KEY).unwrap();
    let large = message("x".repeat(30_000));
    let mut sent = 0;
    let full = loop {
        match dispatcher.dispatch(&large, &to("alice"), &[]).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 200, "the store rejects entries above `max_bytes`");
    };
    assert!(matches!(&full, DispatchError::Rejected { status: 507, .. }) && full.is_transient(), "{full:?}");
    let (retrying, handle) = (dispatcher.retrying(fast_retry()), server.handle.clone());
    let to_bob = to("bob");
    let dispatching = retrying.dispatch(&large, &to_bob, &[]);
    let clearing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        handle.clear(&user_id("alice")).await.unwrap();
    };
    let (result, ()) = tokio::join!(dispatching, clearing);
    assert_eq!(result.unwrap().offline, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_counts_the_logs_that_have_the_message() {
    let server = TestServer::start(|builder| builder).await;
    let dispatcher = Dispatcher::new(&format!("http://{}", server.address), KEY).unwrap();
    let to_both: Recipients = vec![user_id("alice"), user_id("bob")].into();
    assert_eq!(server.handle.send(&message(1), to_both.clone(), &[]).await.unwrap().stored, 2);
    assert_eq!(server.handle.send(&message(1).unsynced(), to_both.clone(), &[]).await.unwrap().stored, 0);
    assert_eq!(dispatcher.dispatch(&message(2), &to_both, &[]).await.unwrap().stored, 2);
    let streamed = dispatcher.dispatch_all([Dispatch::new(message(3), to_both.clone())]).await.unwrap();
    assert_eq!(streamed[0].as_ref().unwrap().stored, 2);

    let server = TestServer::start(|builder| builder.configure(|config| config.sync.enabled = false)).await;
    let dispatcher = Dispatcher::new(&format!("http://{}", server.address), KEY).unwrap();
    let outcome = server.handle.send(&message(1), to_both.clone(), &[]).await.unwrap();
    assert_eq!((outcome.offline, outcome.stored), (2, 0));
    for _ in 0..2 {
        let once = DispatchId::new("once").unwrap();
        let outcome = server.handle.send_once(once, &message(1), to_both.clone(), &[]).await.unwrap();
        assert_eq!((outcome.offline, outcome.stored), (2, 0));
    }
    let expiring = message(1).ttl(Duration::from_secs(20));
    let rejected = server.handle.send(&expiring, to_both.clone(), &[]).await.unwrap_err();
    assert!(matches!(rejected, SendError::SyncOff), "{rejected}");
    let rejected = dispatcher.dispatch(&expiring, &to_both, &[]).await.unwrap_err();
    assert!(matches!(&rejected, DispatchError::Rejected { status: 422, code, .. } if code == "sync_off"), "{rejected}");
}
