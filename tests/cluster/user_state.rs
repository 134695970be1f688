//! Tests the cursors of several devices, and the figures of `GET /v1/status`, for logs in a shared Redis.

use serde_json::{Value, json};

use super::{ServerGroup, message, receive_through, support::socket::Socket};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_has_cursor_of_its_slowest_device_at_every_server() {
    let group = ServerGroup::start(2);
    let device = async |server: usize, name: &str| {
        let address = group.servers[server].address;
        Socket::connect_as(address, "alice", Some(0), Some(name)).await.expect("a connected client")
    };
    let (mut phone, mut tablet) = (device(0, "phone").await, device(1, "tablet").await);
    for n in 0..3 {
        group.dispatch(0, &message(n, &["alice"])).await;
    }
    receive_through(&mut phone, 2).await;
    receive_through(&mut tablet, 2).await;
    // Each step acknowledges, and states the cursors of the phone, the tablet and the user after it.
    phone.acknowledge_through(2).await.expect("an open connection");
    wait_for_cursors(&group, [2, 0, 0]).await;
    tablet.acknowledge_through(1).await.expect("an open connection");
    wait_for_cursors(&group, [2, 1, 1]).await;
    tablet.acknowledge_through(3).await.expect("an open connection");
    wait_for_cursors(&group, [2, 3, 2]).await;
}

/// Waits until both servers report these cursors of alice's phone, of her tablet and of all devices.
async fn wait_for_cursors(group: &ServerGroup, [phone, tablet, all]: [u64; 3]) {
    for server in 0..2 {
        let condition = format!("server {server} reports the cursors {phone}, {tablet} and {all}");
        group
            .wait_until(&condition, server, "/v1/users/alice", |alice| {
                let cursor_of = |name: &str| {
                    let devices = alice["devices"].as_array().expect("a list of devices");
                    devices.iter().find(|device| device["device"] == name).map(|device| device["acknowledged"].clone())
                };
                let cursors = (cursor_of("phone"), cursor_of("tablet"), &alice["acknowledged"]);
                cursors == (Some(json!(phone)), Some(json!(tablet)), &json!(all))
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_with_logs_in_redis_has_no_figures_of_a_store() {
    let group = ServerGroup::start(1);
    group.dispatch(0, &message(0, &["alice"])).await;
    let (_, status) = group.call(0, "GET", "/v1/status", &Value::Null).await;
    let store = json!({
        "kind": "redis", "walBytes": null, "memoryBytes": null, "diskBytes": null, "diskFreeBytes": null,
        "flushLagSeconds": null, "commits": null, "commitLatencyMicros": null,
    });
    assert_eq!((&status["store"], &status["pending"]), (&store, &json!({ "messages": null, "bytes": null })));
    assert_eq!((&status["ready"], &status["messages"]["appended"]), (&json!(true), &json!(1)), "{status}");
}
