//! Sessions of the admin page.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    auth::{Password, digest},
    config,
};

/// Time after which a session ends.
pub(super) const SESSION_TTL: Duration = Duration::from_secs(12 * 60 * 60);

/// Sessions at a time. One more ends the session that was not used for longest.
const SESSIONS_MAX: usize = 64;

/// The admin page: who may use it, and the sessions of those who have logged in.
pub struct Admin {
    access: Access,
    /// By the digest of the token, so that the time of a lookup reveals nothing about a token.
    sessions: Mutex<HashMap<Vec<u8>, Session>>,
}

/// Chooses who may use the page.
enum Access {
    /// There is no page.
    Off,
    /// Everyone at this machine.
    Open,
    /// Who knows the password.
    Password(Password),
}

struct Session {
    expires: Instant,
    used: Instant,
    /// Dropped with the session, which ends its streams.
    ended: watch::Sender<()>,
}

/// Holds the secrets of a session.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secrets {
    /// Value of the cookie.
    pub(super) token: String,
    /// Value of the header that each request of the page sends.
    pub(super) csrf: String,
}

/// Resolves when a session has ended.
pub(super) struct Ended {
    expires: Instant,
    ended: watch::Receiver<()>,
}

impl Admin {
    /// Creates the page as configured. With `is_dev` and without a password it is open to this machine.
    #[must_use]
    pub fn new(admin: &config::Admin, is_dev: bool) -> Self {
        let access = match &admin.password {
            Some(password) => Access::Password(Password::new(password)),
            None if is_dev => Access::Open,
            None => Access::Off,
        };
        Self { access, sessions: Mutex::default() }
    }

    /// Returns whether there is no page.
    pub(in crate::http) fn is_off(&self) -> bool {
        matches!(self.access, Access::Off)
    }

    /// Returns whether everyone at this machine may use the page without a password.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.access, Access::Open)
    }

    /// Returns whether a password is right. Takes the same time for all passwords of one length.
    pub(super) fn check(&self, password: &str) -> bool {
        matches!(&self.access, Access::Password(right) if right.check(password.as_bytes()))
    }

    /// Begins a session.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn begin(&self, now: Instant) -> Result<Secrets, getrandom::Error> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes)?;
        let token = hex(&bytes);
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, session| session.expires > now);
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| sessions.remove(&key));
        }
        let session = Session { expires: now + SESSION_TTL, used: now, ended: watch::Sender::new(()) };
        sessions.insert(digest(token.as_bytes()), session);
        let csrf = csrf(&token);
        Ok(Secrets { token, csrf })
    }

    /// Finds the session of a token, and marks it as used.
    pub(super) fn find(&self, token: &str, now: Instant) -> Option<(Secrets, Ended)> {
        let mut sessions = self.sessions.lock();
        let session = sessions.get_mut(&digest(token.as_bytes())).filter(|session| session.expires > now)?;
        session.used = now;
        let ended = Ended { expires: session.expires, ended: session.ended.subscribe() };
        Some((Secrets { token: token.to_owned(), csrf: csrf(token) }, ended))
    }

    /// Ends the session of a token.
    pub(super) fn end(&self, token: &str) {
        self.sessions.lock().remove(&digest(token.as_bytes()));
    }
}

impl Secrets {
    /// Returns whether `presented` is the token of the header. Takes the same time for all texts of one length.
    pub(super) fn check_csrf(&self, presented: &[u8]) -> bool {
        Password::new(&self.csrf).check(presented)
    }
}

impl Ended {
    /// Resolves when the session has ended: it has expired, the user has logged out, or another has replaced it.
    pub(super) async fn wait(mut self) {
        let remaining = self.expires.saturating_duration_since(Instant::now());
        // Nothing is ever sent, so a change means that the sender is dropped.
        _ = tokio::time::timeout(remaining, self.ended.changed()).await;
    }
}

/// Derives the token of the header. The token of the session cannot be derived from it.
fn csrf(token: &str) -> String {
    hex(&digest(format!("csrf {token}").as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String never fails.
        _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("sessions", &self.sessions.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Admin {
        Admin::new(&config::Admin::default(), true)
    }

    #[test]
    fn session_has_secrets_of_its_own_and_ends_by_expiry_and_logout() {
        let (admin, now) = (open(), Instant::now());
        let [one, two] = [(); 2].map(|()| admin.begin(now).unwrap());
        assert!(one.token.len() == 64 && one.csrf.len() == 64, "256 bits in hexadecimal");
        assert!(one.token != two.token && one.csrf != two.csrf && one.token != one.csrf);
        let (found, _) = admin.find(&one.token, now + SESSION_TTL / 2).unwrap();
        assert!(found == one && found.check_csrf(one.csrf.as_bytes()) && !found.check_csrf(two.csrf.as_bytes()));
        assert!(admin.find(&one.csrf, now).is_none() && admin.find("", now).is_none());
        assert!(admin.find(&one.token, now + SESSION_TTL).is_none());
        admin.end(&two.token);
        assert!(admin.find(&two.token, now).is_none() && admin.find(&one.token, now).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded_and_the_one_unused_for_longest_ends_with_its_streams() {
        let (admin, now) = (open(), Instant::now());
        let first: Vec<_> = (0..SESSIONS_MAX).map(|_| admin.begin(now).unwrap()).collect();
        let later = now + Duration::from_secs(1);
        for secrets in &first[1..] {
            admin.find(&secrets.token, later).unwrap();
        }
        let (_, ended) = admin.find(&first[1].token, later).unwrap();
        let (_, replaced) = admin.find(&first[0].token, now).unwrap();
        let last = admin.begin(later).unwrap();
        assert_eq!(admin.sessions.lock().len(), SESSIONS_MAX);
        assert!(admin.find(&first[0].token, later).is_none(), "it was not used for longest");
        assert!(first[1..].iter().chain([&last]).all(|secrets| admin.find(&secrets.token, later).is_some()));
        replaced.wait().await;
        let waiting = tokio::time::timeout(Duration::from_secs(60), ended.wait()).await;
        assert!(waiting.is_err(), "another session goes on");
        admin.begin(now + 2 * SESSION_TTL).unwrap();
        assert_eq!(admin.sessions.lock().len(), 1, "expired sessions are removed");
    }

    #[test]
    fn page_is_off_without_password_and_open_only_for_development() {
        let with = |password: Option<&str>, is_dev| {
            let password = password.map(str::to_owned);
            Admin::new(&config::Admin { password }, is_dev)
        };
        assert!(with(None, false).is_off() && !with(None, false).check(""));
        assert!(with(None, true).is_open() && !with(Some("secret"), true).is_open());
        assert!(with(Some("secret"), false).check("secret") && !with(Some("secret"), false).check("Secret"));
    }
}
