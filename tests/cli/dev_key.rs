//! Tests the API key that `mesa serve --dev` generates and keeps.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use serde_json::Value;

use crate::{
    WAIT_TIMEOUT, output_text, run_mesa,
    support::{
        command::{mesa_command, utf8},
        server::Process,
        wait::block_until,
    },
};

/// A running `mesa serve --dev`.
struct Started {
    process: Process,
    address: SocketAddr,
    key: String,
    banner: String,
}

/// Starts a server with its store in `store`, in the directory `home`.
fn start(home: &Path, store: &Path) -> Started {
    let (ready, out) = (home.join("ready"), home.join("out"));
    _ = fs::remove_file(&ready);
    let mut command = mesa_command();
    command.args(["serve", "--dev", "--port", "0", "--store-path", utf8(store), "--ready-file", utf8(&ready)]);
    command.current_dir(home).stdin(Stdio::null()).stderr(File::create(home.join("log")).expect("a file"));
    let child = command.stdout(File::create(&out).expect("a file")).spawn().expect("the binary starts");
    let process = Process::new(child);
    block_until("the server is ready", || ready.exists());
    let ready: Value = serde_json::from_slice(&fs::read(&ready).expect("a file")).expect("JSON");
    let text = |name: &str| ready[name].as_str().expect("a text").to_owned();
    let (address, key) = (text("address").parse().expect("an address"), text("apiKey"));
    Started { process, address, key, banner: fs::read_to_string(out).expect("a banner") }
}

#[test]
fn development_key_is_the_same_after_a_restart_and_in_the_banner() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let store = home.path().join("store");
    let first = start(home.path(), &store);
    let file = store.join("dev-api-key");
    assert_eq!(fs::metadata(&file).expect("the key is kept").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&file).expect("the key is kept"), format!("{}\n", first.key));
    assert!(first.banner.contains(&format!("\n  API key    {}\n", first.key)), "{}", first.banner);
    assert!(first.banner.contains(&format!("kept in {}\n", file.display())), "{}", first.banner);
    first.process.kill();

    let second = start(home.path(), &store);
    assert_eq!(second.key, first.key);
    let users = run_mesa(&["users", "--url", &format!("http://{}", second.address), "--key", &first.key]);
    assert!(users.status.success(), "{}", output_text(&users));
    second.process.kill();

    // Without the file there is a new key, and the store starts as before. The key of another store is another one.
    fs::remove_file(&file).expect("the file is removed");
    let third = start(home.path(), &store);
    assert_ne!(third.key, first.key);
    third.process.kill();
    let other = start(home.path(), &home.path().join("other"));
    assert!(other.key != first.key && other.key != third.key);
    other.process.kill();

    // A store that was removed by hand, but for the key.
    for entry in fs::read_dir(&store).expect("the store").flatten().filter(|entry| entry.path() != file) {
        let removed =
            if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.expect("it is removed");
    }
    let last = start(home.path(), &store);
    assert_eq!(last.key, third.key);
    let pid = i32::try_from(last.process.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a running server");
    assert!(last.process.wait(WAIT_TIMEOUT).success());
}
