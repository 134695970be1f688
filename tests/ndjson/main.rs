//! Streams of dispatches over real sockets: what a backend sees of one that is long, broken, slow or cut short.
#![allow(missing_docs)]

mod raw_http;

use std::time::Duration;

use mesa::{
    dispatcher::Dispatch,
    message::{DispatchId, Message, Recipients, UserId},
};
use raw_http::{Served, chunk};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time::timeout};

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn line(n: usize, user: &str) -> String {
    format!("{{\"message\":{{\"d\":{n}}},\"recipients\":[\"{user}\"]}}\n")
}

/// The data of everything that waits for a user, in order.
async fn waiting(served: &Served, name: &str) -> Vec<usize> {
    let (dispatcher, mut found, mut after) = (served.dispatcher(), Vec::new(), 0);
    loop {
        let page = dispatcher.messages(&user(name), after, Some(1000)).await.unwrap().messages;
        let Some(last) = page.last() else { return found };
        after = last.s;
        found.extend(page.iter().map(|message| message.d.as_ref().unwrap().get().parse::<usize>().unwrap()));
    }
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_has_one_answer_in_order_and_a_bad_one_does_not_end_the_stream() {
    let served = Served::start(|config| config.limits.request_bytes = 1024).await;
    let (mut said, mut answers) = served.open("").await;
    let long = format!("{{\"message\":{{\"d\":\"{}\"}},\"recipients\":[]}}\n", "x".repeat(3000));
    said.say(&line(1, "alice")).await;
    said.say("no JSON\n\n  \r\n{}\r\n").await;
    said.say(&long[..2000]).await;
    said.say(&long[2000..]).await;
    said.say(&line(2, "alice")).await;
    said.say("{\"message\":{\"o\":{\"sync\":false}},\"recipients\":[\"alice\",\"bob\"]}\n").await;
    said.say("{\"message\":{\"op\":5,\"t\":\"DISCONNECT_CLIENT\"},\"recipients\":[\"alice\",\"\"]}\n").await;
    said.0.write_all(b"2\r\n\xc3\n\r\n").await.unwrap();
    said.say(line(3, "alice").trim_end()).await;
    said.end().await;
    assert_eq!(answers.head().await, "HTTP/1.1 200 OK");
    let answers = answers.rest().await;
    let taken = json!({"recipients": 1, "online": 0, "offline": 1, "stored": 1, "rejected": [], "duplicate": false});
    assert_eq!(answers[0], taken);
    assert_eq!(answers[1..4].iter().map(code).collect::<Vec<_>>(), ["bad_json", "bad_dispatch", "request_too_large"]);
    assert!(answers[1]["error"]["message"].as_str().unwrap().contains("not JSON"), "{}", answers[1]);
    assert_eq!(answers[4], taken);
    assert_eq!(answers[5]["offline"], 2);
    let disconnected = json!({"recipients": 2, "online": 0, "offline": 1, "stored": 0, "duplicate": false,
        "rejected": [{"user": "", "reason": "invalid"}]});
    assert_eq!(answers[6], disconnected);
    assert_eq!(code(&answers[7]), "bad_json");
    assert_eq!((&answers[8], answers.len()), (&taken, 9), "the last line, without its end");
    assert_eq!(waiting(&served, "alice").await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_begin_while_lines_still_come() {
    let served = Served::start(|_| {}).await;
    let (mut said, mut answers) = served.open("").await;
    assert_eq!(answers.head().await, "HTTP/1.1 200 OK", "before anything was said");
    for n in 0..10 {
        said.say(&line(n, "alice")).await;
        assert_eq!(answers.next().await.unwrap()["offline"], 1);
        assert_eq!(waiting(&served, "alice").await.len(), n + 1, "what is answered is there");
    }
    said.end().await;
    assert_eq!(answers.next().await, None);
    // And the connection is as good as new.
    said.0.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(answers.head().await, "HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_waits_to_be_told_to_go_on_is_told() {
    let served = Served::start(|_| {}).await;
    let (mut said, mut answers) = served.open("Expect: 100-continue\r\n").await;
    assert_eq!(answers.head().await, "HTTP/1.1 100 Continue");
    said.say(&line(0, "alice")).await;
    said.end().await;
    assert_eq!(answers.head().await, "HTTP/1.1 200 OK");
    assert_eq!(answers.rest().await.len(), 1);
}

/// A queue of one op, which others fill all the time: the order of lines must not depend on there being room.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_lines_is_each_users_order_over_a_hundred_thousand_of_them() {
    const LINES: usize = 100_000;
    const USERS: usize = 50;
    let served = Served::start(|config| config.limits.queue = 1).await;
    let noise: Vec<_> = (0..4)
        .map(|_| {
            let dispatcher = served.dispatcher();
            let recipients = Recipients::Users(vec![user("noise")]);
            tokio::spawn(async move {
                let message = Message::new("NOISE", &json!(0)).unwrap();
                loop {
                    dispatcher.dispatch(&message, &recipients, &[]).await.unwrap();
                }
            })
        })
        .collect();
    let name = |n: usize| format!("user-{}", n % USERS);
    let (mut said, mut answers) = served.open("").await;
    answers.head().await;
    let say = async {
        let all: String = (0..LINES).map(|n| line(n, &name(n))).collect();
        // Cut where no line ends, but for luck.
        for piece in all.as_bytes().chunks(9973) {
            said.say(std::str::from_utf8(piece).unwrap()).await;
        }
        said.end().await;
    };
    let ((), answers) = tokio::join!(say, answers.rest());
    noise.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(answers.len(), LINES);
    assert!(answers.iter().all(|answer| answer["offline"] == 1));
    for of in 0..USERS {
        let expected: Vec<usize> = (of..LINES).step_by(USERS).collect();
        assert_eq!(waiting(&served, &name(of)).await, expected, "{}", name(of));
    }
}

/// Messages that pass the log by and those that do not, and a disconnect, one behind the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_and_what_is_not_stay_in_order() {
    let served = Served::start(|_| {}).await;
    let mut client = mesa::client::Connection::connect(&format!("ws://{}/", served.address)).await.unwrap();
    client.authenticate(mesa::client::token("alice"), true).await.unwrap();
    let (mut said, mut answers) = served.open("").await;
    for n in 0..200 {
        let sync = if n % 3 == 0 { r#","o":{"sync":false}"# } else { "" };
        said.say(&format!("{{\"message\":{{\"d\":{n}{sync}}},\"recipients\":[\"alice\"]}}\n")).await;
    }
    said.say("{\"message\":{\"op\":5,\"t\":\"DISCONNECT_CLIENT\"},\"recipients\":[\"alice\"]}\n").await;
    said.end().await;
    answers.head().await;
    assert_eq!(answers.rest().await.len(), 201);
    let (mut kept, mut passed) = (Vec::new(), Vec::new());
    let code = loop {
        match timeout(raw_http::PATIENCE, client.next()).await.unwrap().unwrap() {
            mesa::client::ConnectionEvent::Message { data, .. } => {
                let n: usize = data.get().parse().unwrap();
                if n.is_multiple_of(3) { passed.push(n) } else { kept.push(n) }
            }
            mesa::client::ConnectionEvent::Closed { code, .. } => break code,
            other @ mesa::client::ConnectionEvent::Resumed { .. } => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 1000);
    assert!(kept.is_sorted() && passed.is_sorted(), "{kept:?} {passed:?}");
    // What the connection had not been written by then waits for the next one.
    let behind = waiting(&served, "alice").await;
    assert!(behind.iter().all(|n| n % 3 != 0), "{behind:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_answers_is_not_read_and_loses_nothing() {
    let served = Served::start(|config| config.sync.max_messages = 10_000_000).await;
    let (mut said, mut answers) = served.open("").await;
    let piece: String = (0..500).map(|n| line(n, "alice")).collect();
    let piece = chunk(&piece);
    let mut sent = 0;
    // Far more than all buffers between the two ends.
    let stuck = timeout(raw_http::PATIENCE, async {
        while timeout(Duration::from_secs(3), said.0.write_all(&piece)).await.is_ok() {
            sent += 1;
            assert!(sent < 4_000, "two million lines were taken in although nobody read an answer");
        }
    });
    stuck.await.expect("it stops within a minute");
    drop(said);
    answers.head().await;
    for _ in 0..sent * 500 {
        assert_eq!(answers.next().await.unwrap()["offline"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_in_before_the_server_stopped_is_answered() {
    let mut served = Served::start(|_| {}).await;
    let (mut said, mut answers) = served.open("").await;
    answers.head().await;
    let (stop, mut stopping) = tokio::sync::oneshot::channel();
    let say = async move {
        let piece: String = (0..100).map(|n| line(n, "alice")).collect();
        let piece = chunk(&piece);
        // Until the server closes the connection.
        while said.0.write_all(&piece).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let mut stop = Some(stop);
    let hear = async {
        let mut heard = 0_usize;
        while let Some(answer) = answers.next().await {
            assert_eq!(answer["offline"], 1, "{answer}");
            heard += 1;
            if heard == 1000 {
                stop.take().map(|stop| stop.send(()));
            }
        }
        heard
    };
    let halt = async {
        (&mut stopping).await.unwrap();
        served.begin_to_stop();
    };
    let ((), heard, ()) = timeout(raw_http::PATIENCE, async { tokio::join!(say, hear, halt) }).await.unwrap();
    served.stopped().await;
    let again = served.restart().await;
    assert_eq!(waiting(&again, "alice").await.len(), heard, "answered, and there");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_returns_what_became_of_each_in_order() {
    let served = Served::start(|config| config.limits.recipients = 3).await;
    let dispatch = |n: usize| {
        let to = if n % 1000 == 7 { vec![user("a"), user("b"), user("c"), user("d")] } else { vec![user("alice")] };
        let id = (n % 1000 == 9).then(|| DispatchId::new(&format!("id-{}", n % 3)).unwrap());
        let mut dispatch = Dispatch::new(Message::new("N", &n).unwrap(), Recipients::Users(to));
        dispatch.id = id;
        dispatch
    };
    let results = served.dispatcher().dispatch_all((0..5000).map(dispatch)).await.unwrap();
    assert_eq!(results.len(), 5000);
    for (n, result) in results.iter().enumerate() {
        match result {
            Err(refusal) => assert_eq!((n % 1000, refusal.code.as_str()), (7, "too_many_recipients")),
            // 9, 1009 and 2009 name three; 3009 and 4009 name the first two of those again.
            Ok(result) => assert_eq!((result.offline, result.duplicate), (1, n == 3009 || n == 4009), "{n}"),
        }
    }
    let expected: Vec<usize> = (0..5000).filter(|n| n % 1000 != 7 && *n != 3009 && *n != 4009).collect();
    assert_eq!(waiting(&served, "alice").await, expected);
    assert!(served.dispatcher().dispatch_all([]).await.unwrap().is_empty());
    let stranger =
        mesa::dispatcher::Dispatcher::new(&format!("http://{}", served.address), "another-key-of-16").unwrap();
    let refused = stranger.dispatch_all((0..5000).map(dispatch)).await.unwrap_err().to_string();
    assert!(refused.contains("unauthorized"), "{refused}");
}
