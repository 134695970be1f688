//! Validates the settings of JWT.

use super::{Checks, SECRET_BYTES_MIN};
use crate::config::{Jwt, error::excerpt};

/// Shortest secret without a warning, in bytes: the minimum of HS256.
const SECRET_BYTES_ADVISED: usize = 32;

impl Checks {
    pub(super) fn jwt(&mut self, jwt: &Jwt) {
        const SECRET: &str = "authentication.jwt.secret";
        const KEY_FILE: &str = "authentication.jwt.keyFile";
        const JWKS: &str = "authentication.jwt.jwks.url";
        match (&jwt.secret, &jwt.key_file, &jwt.jwks) {
            (Some(_), Some(_), None) => self.reject(
                &[KEY_FILE, SECRET],
                "authentication.jwt has both a secret (or WS_KEY in the environment) and a keyFile; remove one of them",
            ),
            (Some(_), _, Some(_)) => self.reject(
                &[JWKS, SECRET],
                "authentication.jwt has both a secret (or WS_KEY in the environment) and jwks; remove one of them",
            ),
            (None, Some(_), Some(_)) => {
                self.reject(&[JWKS, KEY_FILE], "authentication.jwt has both a keyFile and jwks; remove one of them");
            }
            (None, None, None) => self.reject(
                &[SECRET, KEY_FILE],
                "authentication.jwt needs a secret (or WS_KEY in the environment), a keyFile or jwks to verify tokens",
            ),
            (Some(secret), None, None) => self.secret(secret),
            (None, Some(path), None) if path.as_os_str().is_empty() => {
                self.reject(&[KEY_FILE], "authentication.jwt.keyFile must name a PEM file with a public key");
            }
            (None, Some(_), None) | (None, None, Some(_)) => {}
        }
        // Which algorithms are possible depends on which one of the three is set.
        let sources = [jwt.secret.is_some(), jwt.key_file.is_some(), jwt.jwks.is_some()];
        if sources.into_iter().filter(|is_set| *is_set).count() == 1 {
            self.algorithms(jwt);
        }
        let texts = [
            ("authentication.jwt.idClaim", &jwt.id_claim),
            ("authentication.jwt.userClaim", &jwt.user_claim),
            ("authentication.jwt.issuer", &jwt.issuer),
            ("authentication.jwt.audience", &jwt.audience),
        ];
        for (name, text) in texts {
            if text.as_deref() == Some("") {
                self.reject(&[name], format!("{name} must not be empty; remove it, or set it to null"));
            }
        }
    }

    fn secret(&mut self, secret: &str) {
        let bytes = secret.len();
        self.public_secret("authentication.jwt.secret", secret);
        if bytes < SECRET_BYTES_MIN {
            self.reject(
                &["authentication.jwt.secret"],
                format!(
                    "authentication.jwt.secret has {bytes} bytes and must have at least {SECRET_BYTES_MIN}, better \
                 {SECRET_BYTES_ADVISED}; `openssl rand -hex 32` generates one"
                ),
            );
        } else if bytes < SECRET_BYTES_ADVISED {
            self.warn(format!(
                "authentication.jwt.secret has {bytes} bytes; {SECRET_BYTES_ADVISED} or more are advised (`openssl rand -hex 32`)"
            ));
        }
    }

    fn algorithms(&mut self, jwt: &Jwt) {
        const NAME: &str = "authentication.jwt.algorithms";
        const WITH_SECRET: &[&str] = &["HS256", "HS384", "HS512"];
        const WITH_KEY: &[&str] = &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
        let (allowed, kind) = match (&jwt.secret, &jwt.jwks) {
            (Some(_), _) => (WITH_SECRET, "secret"),
            (None, Some(_)) => (WITH_KEY, "JWKS"),
            (None, None) => (WITH_KEY, "keyFile"),
        };
        let allowed_names = allowed.join(", ");
        if jwt.algorithms.is_empty() {
            self.reject(
                &[NAME],
                format!("{NAME} must name the accepted algorithms with a {kind}: some of {allowed_names}"),
            );
        }
        for algorithm in &jwt.algorithms {
            if !allowed.contains(&algorithm.as_str()) {
                let algorithm = excerpt(algorithm);
                self.reject(
                    &[NAME],
                    format!(
                        "{NAME} has \"{algorithm}\", which does not work with a {kind}; it may have {allowed_names}"
                    ),
                );
            }
        }
    }
}
