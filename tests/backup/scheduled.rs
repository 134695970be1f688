//! Tests `mesa backup --every`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    STOP_TIMEOUT,
    support::{
        command::{mesa_command, output_text, run_mesa, utf8},
        http::Http,
        server::{Home, KEY, Process},
        wait::block_until,
    },
};

/// A running `mesa backup --every`, and the lines of its output.
struct Schedule {
    process: Process,
    lines: mpsc::Receiver<String>,
}

impl Schedule {
    fn start(directory: &Path, url: &str) -> Self {
        let mut command = mesa_command();
        command
            .args(["backup", "--every", "1s", "--keep", "2", utf8(directory), "--url", url])
            .env("MESA_API_KEY", KEY);
        let mut child: Child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
        let (sender, lines) = mpsc::channel();
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let forward = |reader: Box<dyn BufRead + Send>, sender: mpsc::Sender<String>| {
            std::thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)))
        };
        forward(Box::new(BufReader::new(stdout)), sender.clone());
        forward(Box::new(BufReader::new(stderr)), sender);
        Self { process: Process::new(child), lines }
    }

    /// Waits for a line of the output.
    fn wait_for(&self, condition: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60)).expect("another line within 60 s");
            if condition(&line) {
                return line;
            }
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).expect("a directory").map(|file| file.expect("a file").file_name());
    let mut names: Vec<String> = files.map(|name| name.into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn scheduled_backups_are_verified_rotated_and_continue_after_an_error() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&serde_json::json!("first"), &["alice".to_owned()]).expect("a response");
    let directory = home.path("backups");
    fs::create_dir(&directory).expect("a directory");
    let stale = "mesa-20200101T000000.000Z.backup.partial";
    for foreign in ["mesa-monday.backup", "notes.txt", stale] {
        fs::write(directory.join(foreign), "foreign").expect("a file");
    }
    let url = format!("http://{}", server.address);
    let schedule = Schedule::start(&directory, &url);
    let is_backup = |line: &str| line.contains("1 user, 1 message") && line.contains(" bytes, ");
    // The third backup removes the first.
    schedule.wait_for(|line| is_backup(line) && line.contains("removed 1 old backup"));
    let own =
        |names: Vec<String>| -> Vec<String> { names.into_iter().filter(|name| name.starts_with("mesa-2")).collect() };
    let found = names(&directory);
    assert!(found.contains(&"mesa-monday.backup".to_owned()) && found.contains(&"notes.txt".to_owned()), "{found:?}");
    assert!(!found.contains(&stale.to_owned()), "{found:?}");

    // The server stops: an error on its own line, and the next attempt at the next time.
    server.stop(STOP_TIMEOUT);
    schedule.wait_for(|line| line.starts_with("mesa: ") && line.contains("the next backup follows"));
    let kept = own(names(&directory));
    assert!(!kept.is_empty() && kept.len() <= 3, "the last backups stay: {kept:?}");
    schedule.wait_for(|line| line.starts_with("mesa: "));

    let pid = Pid::from_raw(i32::try_from(schedule.process.id()).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::TERM).expect("a running process");
    let status = schedule.process.wait(STOP_TIMEOUT);
    assert!(status.success(), "expected exit code 0 after SIGTERM, found {status}");
    let kept = own(names(&directory));
    assert!(kept.iter().all(|name| name.ends_with(".backup")), "no incomplete file: {kept:?}");
    let (last, restored) = (directory.join(kept.last().expect("a backup")), home.path("restored"));
    let output = run_mesa(&["restore", utf8(&last), "--store-path", utf8(&restored)]);
    assert!(output.status.success() && output_text(&output).contains("1 user, 1 message"), "{}", output_text(&output));
}

#[test]
fn schedule_stopped_during_a_download_leaves_no_file() {
    use std::{
        io::{BufRead as _, Write as _},
        net::TcpListener,
    };
    let home = Home::new();
    let directory = home.path("backups");
    fs::create_dir(&directory).expect("a directory");
    // A server that begins its response and never ends it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // A response before the request is an error of the connection.
        let mut request = std::io::BufReader::new(&stream).lines();
        request.find(|line| line.as_ref().is_ok_and(String::is_empty)).expect("a request").expect("a line");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 1000000\r\n\r\nmesa backup 003\n";
        stream.write_all(head.as_bytes()).expect("the head is sent");
        stream
    });
    let schedule = Schedule::start(&directory, &url);
    let _stream = serving.join().expect("a served request");
    block_until("an incomplete file", || names(&directory).iter().any(|name| name.ends_with(".partial")));
    let pid = Pid::from_raw(i32::try_from(schedule.process.id()).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::INT).expect("a running process");
    assert!(schedule.process.wait(STOP_TIMEOUT).success());
    assert_eq!(names(&directory), [""; 0]);
}

#[test]
fn arguments_of_a_schedule_that_cannot_work_are_rejected() {
    let home = Home::new();
    for (arguments, reason) in [
        (&["backup", "--keep", "3", "backups"][..], "--every"),
        (&["backup", "--every", "1", "backups"], "--every \"1\" must be a number with its unit"),
        (&["backup", "--every", "1h", "--keep", "0", "backups"], "1 or more"),
        (&["backup", "--every", "1h", utf8(&home.path("missing"))], "is not a directory"),
    ] {
        let output = run_mesa(arguments);
        assert!(!output.status.success() && output_text(&output).contains(reason), "{}", output_text(&output));
    }
}
