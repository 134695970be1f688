//! Tests a server attached to an application's router.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use mesa::{
    client::{Connection, token},
    dispatcher::Dispatcher,
    message::Recipients,
    server::Server,
};
use tokio::{net::TcpListener, sync::oneshot};

use crate::server::{KEY, message, next, records, user_id, wait_for_close, within};

#[tokio::test(flavor = "multi_thread")]
async fn attached_server_serves_clients_and_api_next_to_other_routes() {
    for with_addresses in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let (record, mut records) = records();
        let builder = Server::builder().store_path(home.path()).configure(|config| {
            config.path = "/socket".into();
            config.host = "127.0.0.1".into();
            config.sync.enabled = true;
            config.authentication.insecure = true;
            config.api.keys.push(KEY.into());
        });
        let builder = builder.on_connection(move |client| {
            _ = record.send((client.address().is_some(), client.request().uri().to_string()));
            async {}
        });
        let (routes, mesa) = builder.attach().await.unwrap();
        let handle = mesa.handle();
        let app = Router::new().route("/", get(|| async { "a page" })).merge(routes);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = if with_addresses {
            let app = app.into_make_service_with_connect_info::<SocketAddr>();
            tokio::spawn(axum::serve(listener, app).into_future())
        } else {
            tokio::spawn(axum::serve(listener, app).into_future())
        };
        let running = tokio::spawn(mesa.run(async { _ = stopped.await }));

        let page = reqwest::get(format!("http://{address}/")).await.unwrap().text().await.unwrap();
        assert_eq!(page, "a page");
        let url = format!("ws://{address}/socket?v=1");
        let mut alice = Connection::connect(&url).await.unwrap();
        alice.authenticate(token("alice"), true).await.unwrap();
        assert_eq!(records.next().await, (with_addresses, "/socket?v=1".to_owned()));
        let dispatcher = Dispatcher::new(&format!("http://{address}"), KEY).unwrap();
        let large = "x".repeat(60_000);
        let result = dispatcher.dispatch(&message(&large), &Recipients::from(user_id("alice")), &[]).await.unwrap();
        assert_eq!(result.online, 1);
        assert_eq!(next(&mut alice).await, large);
        assert_eq!(reqwest::get(format!("http://{address}/socket")).await.unwrap().status(), 426);
        for path in ["/v1/users?limit=1", "/v1/users/alice", "/v1/users/alice/messages?limit=1"] {
            let request = reqwest::Client::new().get(format!("http://{address}{path}")).bearer_auth(KEY);
            assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        }

        stop.send(()).unwrap();
        assert_eq!(wait_for_close(&mut alice).await.0, 1001);
        within("stop of the server", running).await.unwrap().unwrap();
        assert!(Connection::connect(&url).await.is_err(), "no connection after the stop");
        assert!(handle.send(&message(1), &user_id("alice"), &[]).await.is_err());
        serving.abort();
    }
}
