//! `mesa dispatch`: what it says of what became of it.

use serde_json::json;

use crate::{
    mesa, said,
    support::{
        http_receiver::{Answer, Receiver},
        server::Home,
    },
};

#[test]
fn who_was_not_taken_is_not_said_to_be_kept() {
    let mut home = Home::new();
    home.set_variable("MESA_SYNC_MAX_MESSAGES", "1");
    let server = home.start();
    let url = format!("http://{}", server.address);
    let dispatch = |to| mesa(&["dispatch", "--url", &url, "--to", to]);
    let taken = dispatch("alice");
    assert!(taken.status.success(), "{}", said(&taken));
    assert_eq!(said(&taken), "1 recipient: 0 online, 1 offline (stored)\n");
    let none = dispatch("alice");
    assert_eq!(said(&none), "1 recipient, accepted for none\nalice: rejected (quota)\n");
    assert_eq!(none.status.code(), Some(1));
    let some = dispatch("alice,bob");
    let expected = "2 recipients, accepted for 1: 0 online, 1 offline (stored)\nalice: rejected (quota)\n";
    assert_eq!(said(&some), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_says_what_to_do_is_not_told_it_twice() {
    let receiver = Receiver::start();
    let url = format!("http://{}", receiver.address);
    let body =
        json!({ "error": { "code": "unreachable", "message": "the store cannot be reached: timed out. Try again" } });
    receiver.script([Answer::With(503, "content-type: application/json\r\n".into(), body.to_string())]);
    let refused = mesa(&["dispatch", "--url", &url, "--to", "alice"]);
    let told =
        "mesa: the server rejected the request (unreachable): the store cannot be reached: timed out. Try again\n";
    assert_eq!(said(&refused), told);
}

#[test]
fn a_time_to_live_of_nothing_is_refused_with_what_would_do() {
    for wrong in ["0", "1h", "4294967296"] {
        let refused = mesa(&["dispatch", "--to", "alice", "--ttl", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains("give a number of seconds from 1 to 4294967295"), "{}", said(&refused));
    }
}
