//! Counts messages to offline users with middleware.
//!
//! `cargo run --example middleware`

use mesa::{
    message::{Message, Payload, UserId},
    middleware::{AccessLog, Middleware, MiddlewareResult, RateLimit},
    server::Server,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts messages to offline users.
#[derive(Clone, Default)]
struct Missed(Arc<AtomicU64>);

impl Middleware for Missed {
    fn on_undeliverable_message_sent(&self, _: &Payload, users: &[UserId]) -> MiddlewareResult {
        self.0.fetch_add(users.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let missed = Missed::default();
    let server = Server::builder()
        .store_path(directory.path())
        .configure(|config| {
            (config.host, config.port, config.authentication.insecure) = ("127.0.0.1".into(), 0, true);
            config.sync.enabled = true;
        })
        // The original's `mesa.use(…)`, in the order in which they are called.
        .middleware(AccessLog::new())
        .middleware(RateLimit::new(5.0, 20)) // messages per second of one user, and the burst
        .middleware(missed.clone())
        .start()
        .await?;
    server.handle().send(&Message::new("NEWS", &1)?, UserId::new("alice")?, &[]).await?;
    assert_eq!(missed.0.load(Ordering::Relaxed), 1);
    server.run(async {}).await?;
    Ok(())
}
