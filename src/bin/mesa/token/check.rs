//! `mesa token --check`: tells whether a server accepts a token, and why not.

use std::{
    io::Read as _,
    time::{Duration, SystemTime},
};

use mesa::{
    auth::{AuthError, Authenticator as _, Jwt, TOKEN_BYTES_MAX, Unverified},
    config::{self, Sources, load},
    util::rfc3339::rfc3339,
};
use serde_json::{Map, Value, json};

use super::{NO_KEY, has_configuration};
use crate::{args::TokenArgs, config::unusable, env, error::Failure, output, output::printable};

/// Checks a token, and prints what it states.
pub async fn run(args: &TokenArgs, given: &str) -> Result<(), Failure> {
    let token = if given == "-" { standard_input()? } else { given.trim().to_owned() };
    let unverified = Unverified::read(&token, None);
    let jwt = settings(args, unverified.as_ref())?;
    let unverified = Unverified::read(&token, jwt.id_claim.as_deref());
    let authenticator = Jwt::new(&jwt).map_err(Failure::because)?;
    let data = Map::from_iter([("token".to_owned(), Value::from(token))]);
    match authenticator.authenticate(&data).await {
        Ok(identity) => {
            output::line(&format!("valid, for the user {}", printable(identity.id.as_str())))?;
            output::line(&expiry(identity.expires, jwt.leeway))?;
            Ok(())
        }
        Err(AuthError::Rejected(reason)) => {
            output::line(&format!("not valid: {}", printable(&reason)))?;
            let remedy = match &unverified {
                None => "Pass a JWT, as `mesa token --id USER` prints one".into(),
                Some(stated) => explain(stated, &jwt)?,
            };
            Err(Failure::because(format!("a server with these keys rejects the token. {remedy}")))
        }
        Err(error) => Err(Failure::because(format!("the token cannot be checked: {error}"))),
    }
}

/// Prints what a rejected token states, and returns what to do.
fn explain(stated: &Unverified, jwt: &config::Jwt) -> Result<String, Failure> {
    let user = stated.user.as_deref().map_or_else(|| "no user".into(), |user| format!("the user {}", printable(user)));
    output::line(&format!("it states {user}, signed with {} (not verified)", printable(&stated.algorithm)))?;
    output::line(&expiry(stated.expires, jwt.leeway))?;
    let now = SystemTime::now();
    if stated.expires.is_some_and(|expires| expires + jwt.leeway <= now) {
        return Ok("Sign a new one".into());
    }
    if let Some(begins) = stated.begins.filter(|begins| *begins > now + jwt.leeway) {
        return Ok(format!("It is valid from {} on: wait, or correct the clock that signed it", rfc3339(begins)));
    }
    Ok(format!(
        "Compare the key, the algorithm ({} accepted) and the claims with those of the program that signs tokens",
        if jwt.algorithms.is_empty() { "HS256".into() } else { jwt.algorithms.join(", ") }
    ))
}

/// Formats when a token expires or has expired.
fn expiry(expires: Option<SystemTime>, leeway: Duration) -> String {
    let Some(expires) = expires else { return "it does not expire".into() };
    let at = rfc3339(expires);
    let now = SystemTime::now();
    match expires.duration_since(now) {
        Ok(left) => format!("it expires in {}, at {at}", rough(left)),
        Err(_) if expires + leeway > now => format!("it expired at {at}, within the leeway of {}", rough(leeway)),
        Err(since) => format!("it has expired {} ago, at {at}", rough(since.duration())),
    }
}

/// Formats a time by its largest unit.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => output::count(seconds, "second"),
        seconds @ ..7_200 => output::count(seconds / 60, "minute"),
        seconds @ ..172_800 => output::count(seconds / 3600, "hour"),
        seconds => output::count(seconds / 86_400, "day"),
    }
}

/// Returns the settings to check with: those of an option, or of a server's configuration.
fn settings(args: &TokenArgs, stated: Option<&Unverified>) -> Result<config::Jwt, Failure> {
    let key = |name: &str| format!("authentication.jwt.{name}");
    let flags = match (&args.secret, &args.key_file) {
        (Some(secret), _) => vec![
            (key("secret"), json!(secret), "--secret".to_owned()),
            (key("algorithms"), json!(["HS256", "HS384", "HS512"]), "--secret".to_owned()),
        ],
        (None, Some(file)) => {
            let Some(Unverified { algorithm, .. }) = stated else {
                return Err(Failure::because("this is not a JWT. Pass one, as `mesa token --id USER` prints it"));
            };
            if algorithm.starts_with("HS") {
                return Err(Failure::because(format!(
                    "the token is signed with {algorithm}, so with a shared secret. Check it with --config or --secret"
                )));
            }
            // `Jwt::new` rejects an algorithm that does not match the key.
            vec![
                (key("keyFile"), json!(file), "--key-file".to_owned()),
                (key("algorithms"), json!([algorithm]), "--key-file".to_owned()),
            ]
        }
        (None, None) => Vec::new(),
    };
    let sources = if !flags.is_empty() {
        Sources { flags, ..Sources::default() }
    } else if has_configuration(args) {
        env::sources(env::config_file(args.config.as_ref()))
    } else {
        return Err(Failure::usage(NO_KEY));
    };
    let jwt = load(&sources).map_err(|error| unusable(&error))?.config.authentication.jwt;
    jwt.ok_or_else(|| {
        Failure::because(
            "this configuration has no authentication.jwt, so its server checks no JWT. Name another configuration, or give \
             --secret or --key-file",
        )
    })
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    let limit = 2 * TOKEN_BYTES_MAX as u64;
    let read = std::io::stdin().lock().take(limit).read_to_string(&mut text);
    read.map_err(|error| Failure::because(format!("cannot read the token from standard input: {error}")))?;
    Ok(text.trim().to_owned())
}
