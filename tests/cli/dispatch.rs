//! Tests `mesa dispatch`: the result that it prints, and its errors.

use serde_json::json;

use crate::{
    output_text, run_mesa,
    support::{
        http_receiver::{Receiver, Response},
        server::Home,
    },
};

// covers: G4
#[test]
fn dispatch_to_rejected_recipient_is_not_reported_as_stored() {
    let mut home = Home::new();
    home.set_variable("MESA_SYNC_MAX_MESSAGES", "1");
    let server = home.start();
    let url = format!("http://{}", server.address);
    let dispatch = |to| run_mesa(&["dispatch", "--url", &url, "--to", to]);
    let accepted = dispatch("alice");
    assert!(accepted.status.success(), "{}", output_text(&accepted));
    assert_eq!(output_text(&accepted), "1 recipient: 0 online, 1 offline (stored)\n");
    let rejected = dispatch("alice");
    assert_eq!(output_text(&rejected), "1 recipient, accepted for none\nalice: rejected (quota)\n");
    assert_eq!(rejected.status.code(), Some(1));
    let partly = dispatch("alice,bob");
    let expected = "2 recipients, accepted for 1: 0 online, 1 offline (stored)\nalice: rejected (quota)\n";
    assert_eq!(output_text(&partly), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_error_with_advice_is_printed_without_further_advice() {
    let receiver = Receiver::start();
    let url = format!("http://{}", receiver.address);
    let body =
        json!({ "error": { "code": "unreachable", "message": "the store cannot be reached: timed out. Try again" } });
    receiver.script([Response::With(503, "content-type: application/json\r\n".into(), body.to_string())]);
    let failed = run_mesa(&["dispatch", "--url", &url, "--to", "alice"]);
    let expected =
        "mesa: the server rejected the request (unreachable): the store cannot be reached: timed out. Try again\n";
    assert_eq!(output_text(&failed), expected);
}

#[test]
fn invalid_ttl_is_an_error_that_states_the_range() {
    for wrong in ["0", "1h", "4294967296"] {
        let failed = run_mesa(&["dispatch", "--to", "alice", "--ttl", wrong]);
        assert_eq!(failed.status.code(), Some(2), "{}", output_text(&failed));
        assert!(
            output_text(&failed).contains("give a number of seconds from 1 to 4294967295"),
            "{}",
            output_text(&failed)
        );
    }
}
