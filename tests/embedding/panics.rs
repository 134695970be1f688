//! Tests panics in the task that calls handlers. Needs the seeded panics of the feature `failpoints`.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mesa::client::Connection;

use crate::server::{TestServer, records, within};

const TEST: &str = "panics::event_after_a_panic_reaches_the_handlers";
const FILE: &str = "MESA_FAILPOINT_PANIC_WHILE";

#[tokio::test(flavor = "multi_thread")]
async fn event_after_a_panic_reaches_the_handlers() {
    let Some(file) = std::env::var_os(FILE) else {
        // Runs this test again in a child process, because the panic is set through environment variables.
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("panic");
        std::fs::write(&file, "").unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture"]).env("MESA_FAILPOINT_PANIC", "handlers").env(FILE, file);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    };
    let panics = Arc::<AtomicUsize>::default();
    let count = panics.clone();
    std::panic::set_hook(Box::new(move |_| _ = count.fetch_add(1, Ordering::Relaxed)));
    let (record, mut records) = records();
    let server = TestServer::start(|builder| {
        builder.on_message(move |_, message| {
            _ = record.send(message.kind().to_owned());
            async {}
        })
    })
    .await;
    let mut client = Connection::connect(&server.url()).await.unwrap();
    client.send("LOST", &1).await.unwrap();
    // One panic for the connection event, one for the message.
    let panicked = async {
        while panics.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within("two panics", panicked).await;
    std::fs::remove_file(file).unwrap();
    client.send("HANDLED", &2).await.unwrap();
    assert_eq!(records.next().await, "HANDLED");
    server.stop().await;
}
