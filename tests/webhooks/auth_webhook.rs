//! Tests authentication of clients by a backend's webhook.

use super::*;
use crate::support::http_receiver::Response;

#[tokio::test(flavor = "multi_thread")]
async fn backend_identifies_clients_and_its_rejection_closes_the_connection() {
    let receiver = Receiver::start();
    let mut home = Home::new();
    home.set_variable("MESA_AUTH_WEBHOOK_URL", &receiver.url());
    home.set_variable("MESA_AUTH_WEBHOOK_SECRET", SECRET);
    home.set_variable("MESA_AUTH_WEBHOOK_ALLOW_PRIVATE", "true");
    let server = home.start();
    receiver.script([
        Response::json(json!({ "id": "alice", "user": { "name": "Alice" } })),
        Response::status(401),
        Response::status(500),
        Response::json(json!({ "id": "bob", "expires": now_s() + 15 })),
    ]);
    let _alice = Socket::connect(server.address, "a-ticket").await.unwrap();
    let mut http = Http::connect(server.address).unwrap();
    let user: Value = http.get("/v1/users/alice").unwrap();
    assert_eq!(user["online"], true, "{user}");
    assert!(Socket::connect(server.address, "no-ticket").await.is_err());
    assert!(Socket::connect(server.address, "a-ticket").await.is_err());
    let mut bob = Socket::connect(server.address, "a-ticket").await.unwrap();
    assert!(bob.event().await.is_err(), "the identity has expired");
    for request in receiver.requests() {
        check_signature(&request);
    }
    assert_eq!(
        receiver.requests()[0].json(),
        json!({ "token": "a-ticket" }),
        "`shouldSync` is not sent to the backend"
    );
    assert_eq!(receiver.requests().len(), 4);
}

fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs()
}
