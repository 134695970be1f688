//! `mesa token`: signs a JWT for a user, or checks one.

mod check;

use mesa::{auth::issue, config::load};
use serde_json::{Map, Value};

use crate::{
    args::{TokenArgs, user_id},
    config,
    duration::duration,
    env,
    error::Failure,
    output,
};

/// Secret, algorithm and claims of a token.
struct Signer {
    secret: String,
    algorithm: String,
    /// Claims that the server requires.
    claims: Map<String, Value>,
}

/// Error of a command without a key.
const NO_KEY: &str =
    "a key is required: name the server's configuration with --config, or set WS_KEY (or give --secret)";

/// Signs or checks a token.
pub async fn run(args: &TokenArgs) -> Result<(), Failure> {
    match (&args.check, &args.id) {
        (Some(token), _) => check::run(args, token).await,
        (None, Some(id)) => sign(args, id),
        // The definition of the arguments excludes this.
        (None, None) => Err(Failure::usage("give --id USER to sign a token, or --check TOKEN to check one")),
    }
}

fn sign(args: &TokenArgs, id: &str) -> Result<(), Failure> {
    let id = user_id(id)?;
    let ttl = args.ttl.as_deref().map(|ttl| duration("--ttl", ttl)).transpose()?;
    let further = claims(&args.claims)?;
    let signer = match &args.secret {
        Some(secret) => Signer { secret: secret.clone(), algorithm: "HS256".into(), claims: Map::new() },
        None => configured(args, id.as_str())?,
    };
    let mut claims = signer.claims;
    claims.extend(further);
    // A secret from an option or variable is a wrong argument, one from a file a wrong file.
    let failure = if args.secret.is_some() { Failure::usage } else { Failure::because };
    let token = issue(&signer.secret, &signer.algorithm, &id, ttl, claims).map_err(failure)?;
    Ok(output::line(&token)?)
}

/// Returns the signer that matches the configuration of a server.
fn configured(args: &TokenArgs, id: &str) -> Result<Signer, Failure> {
    if !has_configuration(args) {
        return Err(Failure::usage(NO_KEY));
    }
    let file = env::config_file(args.config.as_ref());
    let jwt = load(&env::sources(file)).map_err(|error| config::unusable(&error))?.config.authentication.jwt;
    let Some((secret, jwt)) = jwt.and_then(|jwt| Some((jwt.secret.clone()?, jwt))) else {
        return Err(Failure::because(
            "this configuration has no authentication.jwt.secret: without a shared secret, only the owner of the \
             private key can sign tokens",
        ));
    };
    let needed = [
        (jwt.id_claim, id.to_owned().into()),
        (Some("iss".into()), jwt.issuer.into()),
        (Some("aud".into()), jwt.audience.into()),
    ];
    let claims = needed.into_iter().filter_map(|(name, value): (Option<String>, Value)| Some((name?, value)));
    Ok(Signer {
        secret,
        algorithm: jwt.algorithms.into_iter().next().unwrap_or_else(|| "HS256".into()),
        claims: claims.filter(|(_, value)| !value.is_null()).collect(),
    })
}

/// Returns whether a configuration is named. `WS_KEY` alone is sufficient.
fn has_configuration(args: &TokenArgs) -> bool {
    env::config_file(args.config.as_ref()).is_some() || env::is_set("WS_KEY")
}

/// Parses `NAME=VALUE` arguments. A value that is JSON is used as JSON, any other as text.
fn claims(typed: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut claims = Map::new();
    for claim in typed {
        match claim.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                claims.insert(name.to_owned(), value);
            }
            _ => {
                let shown = claim.escape_debug();
                return Err(Failure::usage(format!("--claim \"{shown}\" must look like NAME=VALUE, as in role=admin")));
            }
        }
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_value_is_json_if_it_parses() {
        let typed: Vec<String> = ["role=admin", "level=3", "tags=[1]", "empty=", "a=b=c"].map(String::from).to_vec();
        let expected = serde_json::json!({ "role": "admin", "level": 3, "tags": [1], "empty": "", "a": "b=c" });
        assert_eq!(Value::Object(claims(&typed).unwrap()), expected);
        for typed in ["role", "=admin"] {
            assert!(matches!(claims(&[typed.into()]), Err(Failure::Usage(_))), "{typed}");
        }
    }
}
