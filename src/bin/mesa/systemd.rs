//! Tells systemd the state of the server (`sd_notify`): ready, reloading, stopping, alive.
//!
//! Without the variable `NOTIFY_SOCKET` nothing is sent. An error of sending is logged at debug: the server serves without
//! systemd too.

use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// Reports that the server is ready, at the start and after a reload.
pub fn notify_ready() {
    notify("READY=1");
}

/// Reports that a reload begins.
pub fn notify_reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    // `Type=notify-reload` requires the time, to distinguish this reload from an earlier one.
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
}

/// Reports a state, if systemd has asked for it.
pub fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send(&path, state) {
        tracing::debug!(%error, state, "systemd was not notified");
    }
}

/// Reports twice per interval that the server is alive, if the unit has `WatchdogSec=`.
///
/// The task runs on the threads that serve clients. If they hang, the reports stop, and systemd restarts the server.
pub fn start_watchdog() {
    let Some(interval) = watchdog_interval(|name| env::var(name).ok(), std::process::id()) else { return };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval / 2);
        loop {
            ticks.tick().await;
            notify("WATCHDOG=1");
        }
    });
}

/// Returns the interval of the watchdog; `None` if there is none for the process `id`.
fn watchdog_interval(variable: impl Fn(&str) -> Option<String>, id: u32) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|watched| watched != id.to_string()) {
        return None;
    }
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    // Below it the timer has no accuracy.
    (micros >= 2000).then(|| Duration::from_micros(micros))
}

fn send(path: &OsStr, state: &str) -> io::Result<()> {
    let address = address(path)?;
    let socket = UnixDatagram::unbound()?;
    // A full queue of systemd must not stop the server.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(target_os = "linux")]
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    use std::os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _};
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}

#[cfg(not(target_os = "linux"))]
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    SocketAddr::from_pathname(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_of_another_process_is_ignored() {
        let interval = |pid: Option<&'static str>, micros: &'static str| {
            watchdog_interval(
                move |name| if name == "WATCHDOG_PID" { pid.map(Into::into) } else { Some(micros.into()) },
                7,
            )
        };
        assert_eq!(interval(None, "3000000"), Some(Duration::from_secs(3)));
        assert_eq!(interval(Some("7"), "3000000"), Some(Duration::from_secs(3)));
        assert_eq!(interval(Some("8"), "3000000"), None);
        assert_eq!(interval(None, "0"), None);
        assert_eq!(interval(None, "soon"), None);
    }
}
