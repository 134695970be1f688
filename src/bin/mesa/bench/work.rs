//! Runs one measurement: prepares clients and messages, measures, and reports.

use std::{
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join;
use mesa::{client::Transport, dispatcher::Dispatcher};

use super::{
    clients::Clients,
    deliveries::Deliveries,
    report::{Latency, Report},
    sender::{Job, Sender, Sent},
    usage::Usage,
    users::Users,
};
use crate::{
    args::{BenchArgs, Via, Work},
    endpoint,
    error::Failure,
    progress::{Progress, Unit},
};

/// Messages by default.
const MESSAGES: u64 = 20_000;

/// Messages of a fan-out by default. Each goes to all users.
const FANOUT_MESSAGES: u64 = 100;

/// A measurement of one server.
pub struct Bench<'a> {
    args: &'a BenchArgs,
    pub dispatcher: Dispatcher,
    url: String,
    transport: Transport,
    pub users: Arc<Users>,
    deliveries: Arc<Deliveries>,
    messages: u64,
}

/// What a part of a measurement has used.
struct Span {
    seconds: f64,
    cpu_seconds: Option<f64>,
}

impl<'a> Bench<'a> {
    pub fn new(args: &'a BenchArgs) -> Result<Self, Failure> {
        let messages = if args.work == Work::Fanout { FANOUT_MESSAGES } else { MESSAGES };
        Ok(Self {
            args,
            dispatcher: endpoint::dispatcher(&args.api)?,
            url: endpoint::websocket_url(args.api.url.as_deref())?,
            transport: args.api.ca.as_ref().map_or_else(Transport::default, |path| Transport::default().ca_file(path)),
            users: Arc::new(Users::new(args.users.get(), args.jwt_secret.clone())?),
            deliveries: Arc::new(Deliveries::new()),
            messages: args.messages.map_or(messages, NonZeroU64::get),
        })
    }

    pub async fn measure(&self) -> Result<Report, Failure> {
        match self.args.work {
            Work::Idle => self.idle().await,
            Work::Connect => self.connect().await,
            Work::Fanout | Work::Unicast | Work::Latency => self.online().await,
            Work::Enqueue => self.enqueue().await,
            Work::Drain => self.drain().await,
        }
    }

    async fn idle(&self) -> Result<Report, Failure> {
        let before = Usage::of(&self.dispatcher).await?;
        let _clients = self.clients(false).await?;
        let connected = Usage::of(&self.dispatcher).await?;
        let progress = Progress::start("holding connections", Unit::Time, None);
        tokio::time::sleep(Duration::from_secs(self.args.seconds.get().into())).await;
        drop(progress);
        let after = Usage::of(&self.dispatcher).await?;
        let users = self.users.count() as f64;
        Ok(Report {
            seconds: f64::from(self.args.seconds.get()),
            bytes_per_connection: after.memory_since(&before).map(|bytes| bytes as f64 / users),
            server_cpu_percent: after.cpu_since(&connected).map(|cpu| cpu / f64::from(self.args.seconds.get()) * 100.0),
            closed: self.deliveries.closed(),
            server_resident_bytes: after.resident_bytes,
            ..self.report(0)
        })
    }

    async fn connect(&self) -> Result<Report, Failure> {
        let (span, _clients) = self.span(self.clients(true)).await?;
        let users = self.users.count() as u64;
        let report = self.report(users);
        Ok(Report { latency: Latency::of(&self.deliveries.latencies()), ..self.finish(report, &span, users).await? })
    }

    async fn online(&self) -> Result<Report, Failure> {
        let _clients = self.clients(false).await?;
        let per_message = if self.args.work == Work::Fanout { self.users.count() as u64 } else { 1 };
        let expected = self.messages * per_message;
        let progress = Progress::start(self.label(), Unit::Messages, Some(expected));
        let work = async {
            let received = async {
                self.deliveries.wait_for(expected, |received| progress.set(received)).await;
                Ok(())
            };
            let (sent, ()) = try_join(self.send(|_| {}), received).await?;
            Ok(sent)
        };
        let (span, sent) = self.span(work).await?;
        drop(progress);
        self.received(expected, &sent, &span).await
    }

    async fn enqueue(&self) -> Result<Report, Failure> {
        let progress = Progress::start(self.label(), Unit::Messages, Some(self.messages));
        let (span, sent) = self.span(self.send(|answered| progress.set(answered))).await?;
        drop(progress);
        let report = Report { rejected: sent.rejected, ..self.report(self.messages) };
        self.finish(report, &span, self.messages).await
    }

    async fn drain(&self) -> Result<Report, Failure> {
        let progress = Progress::start("enqueueing", Unit::Messages, Some(self.messages));
        let sent = self.send(|answered| progress.set(answered)).await?;
        let progress = Progress::start(self.label(), Unit::Messages, Some(self.messages));
        let work = async {
            let _clients = self.clients(false).await?;
            self.deliveries.wait_for(self.messages, |received| progress.set(received)).await;
            Ok(())
        };
        let (span, ()) = self.span(work).await?;
        drop(progress);
        // The time since the dispatch says nothing here.
        Ok(Report { latency: None, ..self.received(self.messages, &sent, &span).await? })
    }

    async fn clients(&self, record_connects: bool) -> Result<Clients, Failure> {
        let concurrency = self.args.concurrency.get();
        Clients::connect((&self.url, &self.transport), &self.users, &self.deliveries, concurrency, record_connects)
            .await
    }

    /// Dispatches all messages: each to all users, or to one user after the other.
    async fn send(&self, progress: impl Fn(u64)) -> Result<Sent, Failure> {
        let sender = Sender {
            dispatcher: &self.dispatcher,
            deliveries: &self.deliveries,
            bytes: self.args.bytes.get(),
            rate: (self.args.work == Work::Latency).then_some(self.args.rate.get()),
        };
        let users = self.users.count() as u64;
        let job = |number: u64| match self.args.work {
            Work::Fanout => Job { recipients: self.users.all(), n: number },
            _ => Job { recipients: self.users.one((number % users) as usize), n: number / users },
        };
        match self.args.via {
            Via::Ndjson => sender.stream((0..self.messages).map(job), self.args.in_flight.get(), progress).await,
            Via::Http => {
                let connections = self.args.connections.get();
                let lane = |number: u64| match self.args.work {
                    Work::Fanout => 0,
                    _ => (number % users) as usize % connections,
                };
                sender.requests(self.messages, job, (connections, lane), progress).await
            }
        }
    }

    /// Measures the time and the server's CPU time of some work.
    async fn span<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<(Span, T), Failure> {
        let before = Usage::of(&self.dispatcher).await?;
        let start = Instant::now();
        let result = work.await?;
        let seconds = start.elapsed().as_secs_f64();
        let after = Usage::of(&self.dispatcher).await?;
        Ok((Span { seconds, cpu_seconds: after.cpu_since(&before) }, result))
    }

    async fn received(&self, expected: u64, sent: &Sent, span: &Span) -> Result<Report, Failure> {
        let report = Report {
            received: Some(self.deliveries.received()),
            repeated: self.deliveries.repeated(),
            reordered: self.deliveries.reordered(),
            closed: self.deliveries.closed(),
            rejected: sent.rejected,
            latency: Latency::of(&self.deliveries.latencies()),
            ..self.report(expected)
        };
        self.finish(report, span, expected).await
    }

    /// Adds time, rate, CPU time and memory to a report.
    async fn finish(&self, report: Report, span: &Span, operations: u64) -> Result<Report, Failure> {
        let usage = Usage::of(&self.dispatcher).await?;
        Ok(Report {
            seconds: span.seconds,
            per_second: Some(operations as f64 / span.seconds),
            server_cpu_us: span.cpu_seconds.map(|cpu| cpu * 1e6 / operations as f64),
            server_resident_bytes: usage.resident_bytes,
            ..report
        })
    }

    fn report(&self, operations: u64) -> Report {
        Report {
            work: self.label().to_owned(),
            users: self.users.count() as u64,
            operations,
            bytes: self.args.bytes.get() as u64,
            ..Report::default()
        }
    }

    fn label(&self) -> &'static str {
        match self.args.work {
            Work::Idle => "idle",
            Work::Connect => "connect",
            Work::Fanout => "fanout",
            Work::Unicast => "unicast",
            Work::Latency => "latency",
            Work::Enqueue => "enqueue",
            Work::Drain => "drain",
        }
    }
}
