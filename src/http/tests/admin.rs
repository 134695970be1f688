//! Tests the login of the admin page in the router of another program.

use super::*;

/// More than the 20 wrong passwords that are compared, and those that leak from the bucket meanwhile.
const GUESSES: usize = 60;

#[tokio::test(start_paused = true)]
async fn many_wrong_passwords_of_unknown_addresses_are_not_compared() {
    let api = TestApi::with(|config| config.admin.password = Some("correct horse battery".into()));
    let guesses = (0..GUESSES).map(|n| {
        let body = format!("{{\"password\":\"guess {n}\"}}");
        api.call("POST", "/admin/session", &[("content-type", "application/json")], body)
    });
    let answers = futures_util::future::join_all(guesses).await;
    let with = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert!(with(StatusCode::UNAUTHORIZED) < GUESSES && with(StatusCode::TOO_MANY_REQUESTS) > 0, "{answers:?}");
}
