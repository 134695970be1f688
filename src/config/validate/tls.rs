//! Validates the settings of TLS. The files are read when the server starts.

use super::Checks;
use crate::config::{Certificate, Config, RedisProtocolTls};

/// Most certificates in `tls.certificates`. A handshake compares the requested host with each of them.
const CERTIFICATES_MAX: usize = 100;

impl Checks {
    pub(super) fn tls(&mut self, config: &Config) {
        if let Some(tls) = &config.tls {
            if tls.certificates.is_empty() {
                self.reject(
                    &["tls.certificates", "tls.clientCa", "tls.cert"],
                    "tls has no certificate; set tls.cert and tls.key, each to a PEM file, or remove tls",
                );
            }
            if tls.certificates.len() > CERTIFICATES_MAX {
                let count = tls.certificates.len();
                self.reject(
                    &["tls.certificates"],
                    format!("tls.certificates has {count} certificates; it may have at most {CERTIFICATES_MAX}"),
                );
            }
            for (index, certificate) in tls.certificates.iter().enumerate() {
                let name =
                    if tls.certificates.len() == 1 { "tls".into() } else { format!("tls.certificates[{index}]") };
                self.certificate(&["tls.cert", "tls.key", "tls.certificates"], &name, certificate);
            }
        }
        match &config.redis_protocol.tls {
            RedisProtocolTls::Own(certificate) => {
                self.certificate(&["redisProtocol.tls"], "redisProtocol.tls", certificate);
            }
            RedisProtocolTls::Shared if config.tls.is_none() => self.reject(
                &["redisProtocol.tls", "tls.cert"],
                "redisProtocol.tls is true, and tls has no certificate to share; set tls.cert and tls.key, or \
                 redisProtocol.tls to { cert: 'FILE', key: 'FILE' }",
            ),
            RedisProtocolTls::Shared | RedisProtocolTls::Off => {}
        }
    }

    fn certificate(&mut self, keys: &[&'static str], name: &str, certificate: &Certificate) {
        let Certificate::Files { cert, key } = certificate else { return };
        for (path, word, what) in [(cert, "cert", "its certificate"), (key, "key", "its private key")] {
            if path.as_os_str().is_empty() {
                self.reject(keys, format!("{name}.{word} is missing; set it to the PEM file with {what}"));
            }
        }
    }
}
