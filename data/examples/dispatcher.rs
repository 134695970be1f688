//! Dispatches messages over the HTTP API.
//!
//! `cargo run --example dispatcher`

use mesa::{
    dispatcher::{Dispatch, Dispatcher, Retry},
    message::{DispatchId, Message, Recipients, UserId},
};

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let server = mesa::server::Server::builder()
        .store_path(directory.path())
        .configure(|config| {
            (config.host, config.port) = ("127.0.0.1".into(), 0);
            (config.sync.enabled, config.authentication.insecure) = (true, true);
            config.api.keys.push("a-key-of-16-characters".into());
        })
        .start()
        .await?;
    let url = format!("http://{}", server.local_addr());
    tokio::spawn(server.run(std::future::pending()));

    let dispatcher = Dispatcher::new(&url, "a-key-of-16-characters")?
        // Retries a dispatch that may have failed, with an id, so that it takes effect once.
        .retrying(Retry::default());

    let to = Recipients::from(vec![UserId::new("alice")?, UserId::new("bob")?]);
    let result = dispatcher.dispatch(&Message::new("NEWS", &"hello")?, &to, &[UserId::new("bob")?]).await?;
    assert_eq!((result.recipients, result.offline, result.rejected.len()), (1, 1, 0));

    // Your own id is remembered over restarts of both sides.
    let order = Dispatch::new(Message::new("ORDER", &7)?, to.clone()).id(DispatchId::new("order-7")?);
    assert!(!dispatcher.send(&order).await?.duplicate);
    assert!(dispatcher.send(&order).await?.duplicate);

    // Many dispatches share one stream and its syncs. Each has its result, in order; a rejected one does not stop the others.
    let many = (0..100).map(|n| Dispatch::new(Message::new("N", &n).expect("JSON"), to.clone()));
    let results = dispatcher.dispatch_all(many).await?;
    assert!(results.len() == 100 && results.iter().all(Result::is_ok));

    assert_eq!(dispatcher.user(&UserId::new("bob")?).await?.pending, 101);
    Ok(())
}
