//! A panic in what calls the handlers. Only builds with seeded panics have it (`--features failpoints`).

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mesa::client::Connection;

use crate::server::{Served, diary, within};

const TEST: &str = "panics::connection_whose_event_panics_gets_later_events_to_its_handlers";
const FILE: &str = "MESA_FAILPOINT_PANIC_WHILE";

#[tokio::test(flavor = "multi_thread")]
async fn connection_whose_event_panics_gets_later_events_to_its_handlers() {
    let Some(file) = std::env::var_os(FILE) else {
        // In a process of its own: the environment says where to panic.
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
    let counted = panics.clone();
    std::panic::set_hook(Box::new(move |_| _ = counted.fetch_add(1, Ordering::Relaxed)));
    let (write, mut diary) = diary();
    let served = Served::start(|builder| {
        builder.on_message(move |_, message| {
            _ = write.send(message.kind().to_owned());
            async {}
        })
    })
    .await;
    let mut client = Connection::connect(&served.url()).await.unwrap();
    client.send("LOST", &1).await.unwrap();
    // Its connection, and its message.
    let panicked = async {
        while panics.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within("two panics", panicked).await;
    std::fs::remove_file(file).unwrap();
    client.send("HEARD", &2).await.unwrap();
    assert_eq!(diary.next().await, "HEARD");
    served.stop().await;
}
