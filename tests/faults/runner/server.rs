//! Starts servers and injects faults. Each fault is recorded before it is injected, and again with its proof.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Fault, Runner, RunningServer, milliseconds, scenario::any_power_cut};
use crate::{
    fuse_disk::{Losses, PowerCut},
    history::Event,
    support::http::Http,
};

/// Longest time from SIGTERM to the exit. Then the run fails.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// Time from SIGSTOP to SIGCONT, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=2_000;

impl Runner<'_> {
    /// Returns the running server, or starts one. Makes it the current server of all actors.
    pub(super) fn ensure_server(&mut self) -> Result<RunningServer, String> {
        if self.server.is_none() {
            self.start()?;
        }
        let server = self.server.as_ref().expect("the server was just started");
        let running = RunningServer { number: self.server_number, address: server.address };
        self.context.current.set(running);
        Ok(running)
    }

    fn start(&mut self) -> Result<(), String> {
        self.server_number += 1;
        let server = self.server_number;
        self.record(&Event::Starting { server });
        let start = Instant::now();
        match self.home.ready(self.home.spawn(&[])) {
            Ok(ready) => {
                let elapsed = start.elapsed();
                self.record(&Event::Ready { server, ms: milliseconds(elapsed) });
                self.stats.ready.push(elapsed);
                self.server = Some(ready);
                Ok(())
            }
            Err(reason) => {
                self.record(&Event::Failed { server, reason: reason.clone() });
                Err(reason)
            }
        }
    }

    /// Starts a server and kills it at a random moment of its start.
    pub(super) fn kill_during_start(&mut self) {
        self.server_number += 1;
        self.record(&Event::Starting { server: self.server_number });
        let process = self.home.spawn(&[]);
        let usual = self.stats.median_ready().unwrap_or(Duration::from_millis(60));
        let moment = self.random.within(0..=usual.as_micros() as u64 * 5 / 4);
        thread::sleep(Duration::from_micros(moment));
        self.record(&Event::Fault { server: self.server_number, kind: "kill during start".into() });
        let status = process.kill();
        self.stats.start_kills += u64::from(self.record_death(status));
        if self.scenario.simulated_disk {
            let cut = any_power_cut(&mut self.random);
            self.cut_power(cut);
        }
    }

    /// Injects a fault into the running server.
    pub(super) fn inject(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Kill => self.kill("kill"),
            Fault::PowerCut(cut) => {
                self.kill("power cut");
                self.cut_power(cut);
            }
            Fault::Terminate => self.terminate()?,
            Fault::Pause => self.pause(),
            Fault::Disconnect => self.disconnect()?,
        }
        Ok(())
    }

    /// Kills the server between two rounds, or cuts the power. The next server must continue every sequence.
    pub(super) fn kill_idle_server(&mut self) -> Result<(), String> {
        let Some(server) = &self.server else { return Ok(()) };
        // Acknowledgements are durable with the next dispatch. Without it, messages of the last round would be pending
        // again.
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        let status = http.try_dispatch(&serde_json::json!({ "last": true }), &["user-without-client".to_owned()]);
        match status.map_err(|error| error.to_string())? {
            200 if self.scenario.simulated_disk => {
                let cut = any_power_cut(&mut self.random);
                self.inject(Fault::PowerCut(cut))
            }
            200 => self.inject(Fault::Kill),
            status => Err(format!("expected status 200 for a dispatch, got {status}")),
        }
    }

    fn kill(&mut self, kind: &str) {
        let Some(server) = self.server.take() else { return };
        self.record(&Event::Fault { server: self.server_number, kind: kind.into() });
        let status = server.process.kill();
        self.context.current.clear();
        self.stats.kills += u64::from(self.record_death(status));
    }

    /// Removes unsynced changes of the killed server from the disk.
    fn cut_power(&mut self, cut: PowerCut) {
        let Some(disk) = &self.disk else { return };
        let Losses { writes, bytes, names } = disk.cut_power(cut, &mut self.random);
        let kind = format!("{cut:?}").to_lowercase();
        self.record(&Event::PowerCut { server: self.server_number, kind, writes, bytes, names });
        self.stats.add_power_cut(Losses { writes, bytes, names });
    }

    /// Records the exit status of a killed server. Returns whether the kill was its cause.
    fn record_death(&self, status: ExitStatus) -> bool {
        self.record(&Event::Died { server: self.server_number, how: status.to_string() });
        status.signal() == Some(Signal::KILL.as_raw())
    }

    fn terminate(&mut self) -> Result<(), String> {
        let Some(server) = self.server.take() else { return Ok(()) };
        self.record(&Event::Fault { server: self.server_number, kind: "terminate".into() });
        server.terminate();
        let status = server.process.wait(STOP_TIMEOUT);
        self.context.current.clear();
        if !status.success() {
            let reason = format!("expected exit code 0 after SIGTERM, got {status}");
            self.record(&Event::Failed { server: self.server_number, reason: reason.clone() });
            return Err(reason);
        }
        self.record(&Event::Stopped { server: self.server_number });
        self.stats.stops += 1;
        Ok(())
    }

    fn pause(&mut self) {
        let duration = Duration::from_millis(self.random.within(PAUSE_MS));
        let Some(server) = &self.server else { return };
        self.record(&Event::Fault { server: self.server_number, kind: format!("pause of {duration:?}") });
        server.signal(Signal::STOP);
        thread::sleep(duration);
        server.signal(Signal::CONT);
        self.stats.pauses += 1;
    }

    /// Closes all connections of about half of the users.
    fn disconnect(&mut self) -> Result<(), String> {
        let Some(server) = &self.server else { return Ok(()) };
        self.record(&Event::Fault { server: self.server_number, kind: "disconnect".into() });
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        let mut disconnected = 0;
        for user in self.context.params.users() {
            if self.random.one_in(2) {
                let path = format!("/v1/users/{user}/disconnect");
                let (status, body) = http.call("POST", &path, "").map_err(|error| error.to_string())?;
                let result: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                disconnected += if status == 200 { result["disconnected"].as_u64().unwrap_or(0) } else { 0 };
            }
        }
        self.stats.disconnects += u64::from(disconnected > 0);
        Ok(())
    }

    /// Records that an undisturbed server did not do what it should, and whether it has exited.
    pub(super) fn record_failure(&mut self, reason: &str) {
        let exited = self.server.as_mut().and_then(|server| server.process.try_wait());
        let server = self.server_number;
        self.record(&match exited {
            Some(status) => Event::Died { server, how: format!("{status}, while {reason}") },
            None => Event::Failed { server, reason: reason.to_owned() },
        });
    }
}
