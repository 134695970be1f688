//! Checks the claims of a token whose signature is valid.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{AuthError, Identity, rejected, user_object};
use crate::{
    config,
    message::{UserId, surrogates},
};

/// Holds the claims of a token: an object without repeated names.
///
/// Of two `id`s one parser uses the first and another the last. A proxy could check one `id`, and this server use the
/// other.
///
/// Values are parsed on demand, so a lone surrogate in an unused claim is no error.
pub(super) struct Claims(BTreeMap<String, Box<RawValue>>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique)
    }
}

struct Unique;

impl<'de> Visitor<'de> for Unique {
    type Value = Claims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claims, A::Error> {
        let mut claims = BTreeMap::new();
        while let Some((name, value)) = entries.next_entry::<String, Box<RawValue>>()? {
            if claims.insert(name, value).is_some() {
                return Err(A::Error::custom("a claim is repeated"));
            }
        }
        Ok(Claims(claims))
    }
}

impl Claims {
    /// Returns the value of a claim, if the token has it.
    fn get(&self, name: &str) -> Result<Option<Value>, AuthError> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        if surrogates::has_lone_surrogate(raw.get()) {
            return Err(rejected(format!("the claim {name} has a lone surrogate")));
        }
        let value = serde_json::from_str(raw.get());
        value.map(Some).map_err(|_| rejected(format!("the claim {name} is malformed")))
    }

    /// Returns the time in a claim, if it has one.
    pub(super) fn time(&self, name: &str) -> Option<SystemTime> {
        time(&self.get(name).ok()??)
    }
}

/// Holds the configured requirements of claims.
pub(super) struct Rules {
    id_claim: Option<String>,
    user_claim: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
}

impl Rules {
    pub fn new(jwt: &config::Jwt) -> Self {
        Self {
            id_claim: jwt.id_claim.clone(),
            user_claim: jwt.user_claim.clone(),
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            leeway: jwt.leeway,
        }
    }

    /// Returns the user of a token that is valid at `now`.
    pub fn identity(&self, claims: &Claims, now: SystemTime) -> Result<Identity, AuthError> {
        let expires = self.times(claims, now)?;
        if let Some(issuer) = &self.issuer
            && claims.get("iss")?.as_ref().and_then(Value::as_str) != Some(issuer)
        {
            return Err(rejected("the token's issuer (iss) is not authentication.jwt.issuer"));
        }
        if let Some(audience) = &self.audience
            && !claims.get("aud")?.is_some_and(|claim| is_for(&claim, audience))
        {
            return Err(rejected("the token's audience (aud) is not authentication.jwt.audience"));
        }
        let id = id(claims, self.id_claim.as_deref())?;
        let claim = self.user_claim.as_ref().and_then(|name| claims.0.get(name)).map(|claim| claim.get());
        let user = user_object(claim.filter(|claim| *claim != "null").unwrap_or("{}"), &id);
        let user = user.ok_or_else(|| rejected("the claim for the user object (userClaim) is not an object"));
        let (user, user_text) = user?;
        Ok(Identity { id, user, expires, user_text })
    }

    /// Checks that the token is valid at `now`, and returns when it expires.
    ///
    /// It is valid from `nbf` (inclusive) to `exp` (exclusive). The leeway extends both ends.
    fn times(&self, claims: &Claims, now: SystemTime) -> Result<Option<SystemTime>, AuthError> {
        if let Some(claim) = claims.get("nbf")? {
            let begins = time(&claim).ok_or_else(|| rejected("the token's nbf is not a time"))?;
            if now.checked_add(self.leeway).is_none_or(|latest| latest < begins) {
                return Err(rejected("the token is not valid yet (nbf)"));
            }
        }
        let Some(claim) = claims.get("exp")? else { return Ok(None) };
        let expires = time(&claim).and_then(|expires| expires.checked_add(self.leeway));
        let expires = expires.ok_or_else(|| rejected("the token's exp is not a time"))?;
        if expires <= now {
            return Err(rejected("the token has expired (exp)"));
        }
        Ok(Some(expires))
    }
}

/// Returns the user that a token names in `id_claim`; by default in `id`, else in `sub`.
pub(super) fn id(claims: &Claims, id_claim: Option<&str>) -> Result<UserId, AuthError> {
    let claim = match id_claim {
        Some(name) => claims.get(name)?,
        None => match claims.get("id")? {
            Some(id) => Some(id),
            None => claims.get("sub")?,
        },
    };
    let id = match claim {
        None => return Err(rejected("the token does not name a user")),
        Some(Value::String(id)) => UserId::new(&id),
        // A float is rejected: large numbers are rounded, and two users would become one.
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => UserId::new(&id.to_string()),
        Some(_) => return Err(rejected("the claim that names the user is neither a string nor a whole number")),
    };
    id.map_err(|error| rejected(format!("the token names an invalid user id: {error}")))
}

/// Parses seconds since 1970, with or without a fraction.
fn time(claim: &Value) -> Option<SystemTime> {
    let since = match claim.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(claim.as_f64()?).ok()?,
    };
    UNIX_EPOCH.checked_add(since)
}

/// Returns whether `aud`, one audience or a list of audiences, has `audience`.
fn is_for(claim: &Value, audience: &str) -> bool {
    match claim {
        Value::String(one) => one == audience,
        Value::Array(several) => {
            several.iter().all(Value::is_string) && several.iter().any(|one| one.as_str() == Some(audience))
        }
        _ => false,
    }
}
