//! Uses services of the operating system: limit of open files, listening socket, signals.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mesa::server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{error::Failure, logging};

/// Number of the signal SIGXFSZ.
const SIGXFSZ: i32 = rustix::process::Signal::XFSZ.as_raw();

/// Raises the limit of open files as far as the system allows. The server limits its connections to the result.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!("the limit of open files could not be raised: {error}");
    }
}

/// Listens on `host`, which is an IP address or `localhost`.
pub fn listen(host: &str, port: u16) -> Result<TcpListener, Failure> {
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => other.parse().map_err(|_| {
            Failure::because(format!("host \"{}\" is not an IP address; set one, or localhost", other.escape_debug()))
        })?,
    };
    server::bind(SocketAddr::new(ip, port)).map_err(|error| Failure::because(bind_error(&error, host, port)))
}

/// Returns why a server cannot listen, with a remedy.
fn bind_error(error: &io::Error, host: &str, port: u16) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} at {host} is in use, perhaps by another mesa: stop that one, or choose another port with --port"
        ),
        io::ErrorKind::PermissionDenied => {
            format!(
                "port {port} may not be used by this user: choose one above 1023 with --port, or grant CAP_NET_BIND_SERVICE"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no address {host}: set host to one it has, or to 0.0.0.0 for all of them")
        }
        _ => format!("cannot listen on {host}, port {port}: {error}"),
    }
}

/// Handles SIGTERM and SIGINT. The future ends with the first signal. The second signal ends the process at once.
pub fn shutdown() -> io::Result<impl Future<Output = ()> + Send> {
    let mut signals = Signals::new()?;
    Ok(async move {
        let (name, _) = signals.next().await;
        tracing::info!("stopping after {name}; a second signal stops at once");
        tokio::spawn(async move {
            let (name, exit_code) = signals.next().await;
            tracing::warn!("stopped at once after a second signal, {name}");
            logging::flush();
            std::process::exit(exit_code);
        });
    })
}

/// Ignores SIGUSR1 and SIGUSR2, which make other servers reopen logs or report their state.
///
/// By default each of them would end the process without a log line.
pub fn ignore_user_signals() -> io::Result<()> {
    for (name, kind) in [("SIGUSR1", SignalKind::user_defined1()), ("SIGUSR2", SignalKind::user_defined2())] {
        let mut signals = signal(kind)?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::warn!("{name} is ignored: this signal has no effect");
            }
        });
    }
    Ok(())
}

/// Receives SIGHUP, the request to reload. From this call on it does not end the process.
///
/// Signals that arrive before the receiver is polled count as one.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Ignores SIGXFSZ, the signal of a write beyond the largest allowed file size (`RLIMIT_FSIZE`).
///
/// By default it ends the process without a log line. When it is ignored, the write fails: a log line is dropped and
/// counted, and the store handles it as a full disk.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // Nothing is logged: a log line could cause the next signal.
    signal(SignalKind::from_raw(SIGXFSZ)).map(drop)
}

/// Receiver of SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. From then on these signals do not end the process by themselves.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal. Returns its name, and the exit code of a process that it ends.
    pub async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 128 + 15),
            _ = self.interrupt.recv() => ("SIGINT", 128 + 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_in_use_is_an_error_with_a_remedy() {
        let first = listen("127.0.0.1", 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let Err(Failure::Failed(reason)) = listen("127.0.0.1", port) else {
            panic!("expected an error, not a second listener on one port")
        };
        assert!(reason.contains("in use") && reason.contains("--port"), "{reason}");
    }

    #[tokio::test]
    async fn address_of_another_machine_is_an_error_with_a_remedy() {
        let Err(Failure::Failed(reason)) = listen("192.0.2.1", 0) else {
            panic!("expected an error, not a listener on the address of another machine")
        };
        assert!(reason.contains("0.0.0.0"), "{reason}");
    }
}
