//! Tests the progress that long commands show on a terminal.

use std::{
    fs::OpenOptions,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{
    WAIT_TIMEOUT, output_text,
    support::{
        command::{mesa_command, utf8},
        http_receiver::{Receiver, Response},
        server::{Home, KEY},
        terminal::Terminal,
        wait::block_until,
    },
};

const LINE: &[u8] = b"{\"message\":{},\"recipients\":[\"alice\"]}\n";

fn ndjson(home_url: &str) -> Command {
    let mut command = mesa_command();
    command.args(["dispatch", "--ndjson", "--url", home_url, "--key", KEY]).stdin(Stdio::piped());
    command
}

#[test]
fn long_stream_shows_its_progress_on_a_terminal_only() {
    let home = Home::new();
    let server = home.start();
    let url = format!("http://{}", server.address);
    let mut terminal = Terminal::spawn(&mut ndjson(&url));
    let mut input = terminal.process.take_stdin().expect("a pipe");
    input.write_all(LINE).expect("the command reads");
    let shown = terminal.wait_for("the progress", |text| text.contains(&format!("sending: {} B", LINE.len())));
    assert!(!shown.contains("1 accepted"), "{shown:?}");
    drop(input);
    terminal.wait_for("the result", |text| text.contains("1 dispatch: 1 accepted\r\n"));
    block_until("the end of the command", || terminal.process.try_wait().is_some());
    // The progress may be drawn once more below the result. The last thing that is drawn is an empty line in its place.
    let is_removed = |text: &str| text.rsplit("sending").next().is_some_and(|end| end.contains("\x1b[2K"));
    terminal.wait_for("the removal of the progress", is_removed);
    assert!(terminal.process.wait(WAIT_TIMEOUT).success());

    // Without a terminal: only the result.
    let mut child = ndjson(&url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(LINE).expect("the command reads");
    // Longer than the delay after which progress is shown on a terminal.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    drop(input);
    assert_eq!(output_text(&child.wait_with_output().expect("it ends")), "1 dispatch: 1 accepted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_show_their_progress() {
    let home = Home::new();
    let receiver = Receiver::start();
    receiver.respond_with(Response::Silence);
    let (backup, url) = (home.path("backup.mesa"), format!("http://{}", receiver.address));
    let mut command = mesa_command();
    command.args(["backup", utf8(&backup), "--url", &url, "--key", KEY]).stdin(Stdio::null());
    Terminal::spawn(&mut command).wait_for("the progress of a backup", |text| text.contains("receiving: 0 B"));

    // A pipe, so that the command waits for its content.
    let pipe = home.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    let restored = home.path("restored");
    let mut command = mesa_command();
    command.args(["restore", utf8(&pipe), "--store-path", utf8(&restored)]).stdin(Stdio::null());
    let terminal = Terminal::spawn(&mut command);
    let mut content = OpenOptions::new().write(true).open(&pipe).expect("the command opens the pipe");
    terminal.wait_for("the progress of a restore", |text| text.contains("verifying and restoring: 0 B"));
    content.write_all(b"not a backup of mesa").expect("the command reads");
    drop(content);
    terminal.wait_for("the error", |text| text.contains("the file is not a backup of a mesa store"));
    assert_eq!(terminal.process.wait(WAIT_TIMEOUT).code(), Some(1));
}
