//! A server as part of somebody's router.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use mesa::{
    client::{Connection, token},
    dispatcher::Dispatcher,
    message::Recipients,
    server::Server,
};
use tokio::{net::TcpListener, sync::oneshot};

use crate::server::{KEY, diary, end, id, message, next, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_a_router_serves_sockets_and_backends_beside_other_pages() {
    for with_addresses in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let (write, mut diary) = diary();
        let builder = Server::builder().store_path(home.path()).configure(|config| {
            config.path = "/socket".into();
            config.host = "127.0.0.1".into();
            config.sync.enabled = true;
            config.authentication.insecure = true;
            config.api.keys.push(KEY.into());
        });
        let builder = builder.on_connection(move |client| {
            _ = write.send((client.address().is_some(), client.request().uri().to_string()));
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
        assert_eq!(diary.next().await, (with_addresses, "/socket?v=1".to_owned()));
        let dispatcher = Dispatcher::new(&format!("http://{address}"), KEY).unwrap();
        let large = "x".repeat(60_000);
        let result = dispatcher.dispatch(&message(&large), &Recipients::from(id("alice")), &[]).await.unwrap();
        assert_eq!(result.online, 1);
        assert_eq!(next(&mut alice).await, large);
        assert_eq!(reqwest::get(format!("http://{address}/socket")).await.unwrap().status(), 426);

        stop.send(()).unwrap();
        assert_eq!(end(&mut alice).await.0, 1001);
        within("the server to stop", running).await.unwrap().unwrap();
        assert!(Connection::connect(&url).await.is_err(), "nobody is let in any more");
        assert!(handle.send(&message(1), &id("alice"), &[]).await.is_err());
        serving.abort();
    }
}
