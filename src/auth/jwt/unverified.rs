//! Describes a token without a check of its signature, to explain why it is rejected.

use std::time::SystemTime;

use jsonwebtoken::dangerous::insecure_decode;

use super::{
    claims::{Claims, id},
    header, install_provider,
};

/// What a token states about itself. Anybody can write such a token: use it only for messages to people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unverified {
    /// Algorithm of the signature.
    pub algorithm: String,
    /// User id in the claims that the configuration names, if it is valid.
    pub user: Option<String>,
    /// Time from which the token is valid (`nbf`).
    pub begins: Option<SystemTime>,
    /// Time at which the token expires (`exp`).
    pub expires: Option<SystemTime>,
}

impl Unverified {
    /// Reads a token; `None` if it is not a JWT. `id_claim` is as in [`Jwt::id_claim`](crate::config::Jwt::id_claim).
    #[must_use]
    pub fn read(token: &str, id_claim: Option<&str>) -> Option<Self> {
        install_provider();
        let algorithm = format!("{:?}", header(token).ok()?.alg);
        let claims = insecure_decode::<Claims>(token).ok()?.claims;
        let (begins, expires) = (claims.time("nbf"), claims.time("exp"));
        Some(Self { algorithm, user: id(&claims, id_claim).ok().map(|id| id.to_string()), begins, expires })
    }
}
