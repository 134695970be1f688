//! Starting a server, and each way of harming it. Whatever is done is written down before, and after with the proof.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Fault, Here, Theatre, form::any_cut, here, milliseconds};
use crate::{
    disk::{Cut, Lost},
    history::Event,
    support::http::Http,
};

/// How long a server may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// How long one is stopped by SIGSTOP, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=2_000;

impl Theatre<'_> {
    /// The server that is there, or a new one, which everybody is told of.
    pub(super) fn enter(&mut self) -> Result<Here, String> {
        if self.server.is_none() {
            self.start()?;
        }
        let server = self.server.as_ref().expect("it was just started");
        let here = here(self.life, server);
        self.world.stage.enter(here);
        Ok(here)
    }

    fn start(&mut self) -> Result<(), String> {
        self.life += 1;
        let life = self.life;
        self.record(&Event::Starting { life });
        let began = Instant::now();
        match self.home.ready(self.home.spawn(&[])) {
            Ok(server) => {
                let took = began.elapsed();
                self.record(&Event::Ready { life, ms: milliseconds(took) });
                self.tally.ready.push(took);
                self.server = Some(server);
                Ok(())
            }
            Err(why) => {
                self.record(&Event::Failed { life, why: why.clone() });
                Err(why)
            }
        }
    }

    /// Kills a server at a random moment while it starts.
    pub(super) fn kill_at_start(&mut self) {
        self.life += 1;
        self.record(&Event::Starting { life: self.life });
        let process = self.home.spawn(&[]);
        let usual = self.tally.median_ready().unwrap_or(Duration::from_millis(60));
        let moment = self.random.within(0..=usual.as_micros() as u64 * 5 / 4);
        thread::sleep(Duration::from_micros(moment));
        self.record(&Event::Fault { life: self.life, kind: "kill at start".into() });
        let status = process.kill();
        self.tally.at_start += u64::from(self.buried(status));
        if self.form.forgets {
            let cut = any_cut(&mut self.random);
            self.cut(cut);
        }
    }

    /// Does something to the server at work.
    pub(super) fn harm(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Kill => self.kill("kill"),
            Fault::Cut(cut) => {
                self.kill("power cut");
                self.cut(cut);
            }
            Fault::Terminate => self.terminate()?,
            Fault::Pause => self.pause(),
            Fault::Disconnect => self.disconnect()?,
        }
        Ok(())
    }

    fn kill(&mut self, kind: &str) {
        let Some(server) = self.server.take() else { return };
        self.record(&Event::Fault { life: self.life, kind: kind.into() });
        let status = server.process.kill();
        self.world.stage.leave();
        self.tally.kills += u64::from(self.buried(status));
    }

    /// Takes back what the dead server did not sync.
    fn cut(&mut self, cut: Cut) {
        let Some(disk) = &self.disk else { return };
        let Lost { writes, bytes, names } = disk.cut(cut, &mut self.random);
        let kind = format!("{cut:?}").to_lowercase();
        self.record(&Event::Cut { life: self.life, kind, writes, bytes, names });
        self.tally.cut(Lost { writes, bytes, names });
    }

    /// Writes down how a killed server ended; true if it was by that.
    fn buried(&self, status: ExitStatus) -> bool {
        self.record(&Event::Died { life: self.life, how: status.to_string() });
        status.signal() == Some(Signal::KILL.as_raw())
    }

    fn terminate(&mut self) -> Result<(), String> {
        let Some(server) = self.server.take() else { return Ok(()) };
        self.record(&Event::Fault { life: self.life, kind: "terminate".into() });
        server.terminate();
        let status = server.process.wait(STOP_PATIENCE);
        self.world.stage.leave();
        if !status.success() {
            let why = format!("asked to end, it ended with {status}");
            self.record(&Event::Failed { life: self.life, why: why.clone() });
            return Err(why);
        }
        self.record(&Event::Stopped { life: self.life });
        self.tally.stops += 1;
        Ok(())
    }

    fn pause(&mut self) {
        let moment = Duration::from_millis(self.random.within(PAUSE_MS));
        let Some(server) = &self.server else { return };
        self.record(&Event::Fault { life: self.life, kind: format!("pause of {moment:?}") });
        server.signal(Signal::STOP);
        thread::sleep(moment);
        server.signal(Signal::CONT);
        self.tally.pauses += 1;
    }

    /// Closes all connections of half of the users.
    fn disconnect(&mut self) -> Result<(), String> {
        let Some(server) = &self.server else { return Ok(()) };
        self.record(&Event::Fault { life: self.life, kind: "disconnect".into() });
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        let mut told = 0;
        for user in self.world.plan.users() {
            if self.random.once_in(2) {
                let path = format!("/v1/users/{user}/disconnect");
                let (status, body) = http.call("POST", &path, "").map_err(|error| error.to_string())?;
                let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                told += if status == 200 { answer["disconnected"].as_u64().unwrap_or(0) } else { 0 };
            }
        }
        self.tally.disconnects += u64::from(told > 0);
        Ok(())
    }

    /// Something failed that a server at peace should have done: writes down whether it is still there.
    pub(super) fn lament(&mut self, why: &str) {
        let ended = self.server.as_mut().and_then(|server| server.process.ended());
        let life = self.life;
        self.record(&match ended {
            Some(status) => Event::Died { life, how: format!("{status}, while {why}") },
            None => Event::Failed { life, why: why.to_owned() },
        });
    }
}
