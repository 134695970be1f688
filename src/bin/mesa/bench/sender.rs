//! Dispatches the messages of a measurement over an NDJSON stream, or by requests.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use mesa::{
    dispatcher::Dispatcher,
    message::{Message, Recipients, UserId},
};
use serde_json::value::RawValue;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use super::deliveries::Deliveries;
use crate::error::Failure;

/// Type of the messages.
const KIND: &str = "BENCH";

/// Bytes of lines that are sent as one chunk, if that many are ready.
const CHUNK_BYTES: usize = 32 << 10;

/// One message: its recipients, and its number among their messages.
pub struct Job<'a> {
    pub recipients: &'a [UserId],
    pub n: u64,
}

/// Dispatches messages.
pub struct Sender<'a> {
    pub dispatcher: &'a Dispatcher,
    pub deliveries: &'a Deliveries,
    /// Bytes of data in a message.
    pub bytes: usize,
    /// Messages per second; `None`: as fast as possible.
    pub rate: Option<u64>,
}

/// Counts what a sender has dispatched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Dispatches that were answered.
    pub answered: u64,
    /// Recipients that the server rejected, and dispatches that it rejected as a whole.
    pub rejected: u64,
}

impl Sender<'_> {
    /// Dispatches messages over one stream, with at most `in_flight` of them unanswered.
    pub async fn stream<'b>(
        &self,
        jobs: impl Iterator<Item = Job<'b>>,
        in_flight: usize,
        progress: impl Fn(u64),
    ) -> Result<Sent, Failure> {
        let (mut writer, mut reader) = self.dispatcher.stream().await.map_err(Failure::because)?;
        let window = Arc::new(Semaphore::new(in_flight));
        let start = Instant::now();
        let send = async {
            let mut chunk = Vec::new();
            for (number, job) in (0..).zip(jobs) {
                if self.is_early(start, number) || window.available_permits() == 0 || chunk.len() >= CHUNK_BYTES {
                    if !chunk.is_empty() {
                        // The reader has the cause of an error.
                        if writer.send_json(std::mem::take(&mut chunk)).await.is_err() {
                            return;
                        }
                    }
                    self.wait_for_turn(start, number).await;
                }
                let Ok(permit) = window.acquire().await else { return };
                permit.forget();
                chunk.extend_from_slice(self.line(&job).as_bytes());
            }
            if !chunk.is_empty() {
                _ = writer.send_json(chunk).await;
            }
            drop(writer);
        };
        let receive = async {
            let mut sent = Sent::default();
            while let Some(result) = reader.next().await.map_err(Failure::because)? {
                window.add_permits(1);
                sent.answered += 1;
                sent.rejected += result.map_or(1, |result| result.rejected.len() as u64);
                progress(sent.answered);
            }
            Ok::<_, Failure>(sent)
        };
        tokio::pin!(send);
        tokio::pin!(receive);
        // The stream may end early, while the sender waits for answers.
        tokio::select! {
            received = &mut receive => received,
            () = &mut send => receive.await,
        }
    }

    /// Dispatches messages `0..count` by requests over several connections, each with one request at a time.
    ///
    /// `lane` states which connection dispatches a message. Messages to one user keep their order only on one connection.
    pub async fn requests<'b>(
        &self,
        count: u64,
        job: impl Fn(u64) -> Job<'b>,
        (connections, lane): (usize, impl Fn(u64) -> usize),
        progress: impl Fn(u64),
    ) -> Result<Sent, Failure> {
        let (start, answered) = (Instant::now(), AtomicU64::new(0));
        let (answered, job, lane, progress) = (&answered, &job, &lane, &progress);
        let connection = |connection: usize| async move {
            let mut rejected = 0;
            for number in (0..count).filter(|number| lane(*number) == connection) {
                self.wait_for_turn(start, number).await;
                let job = job(number);
                let recipients = Recipients::Users(job.recipients.to_vec());
                let result = self.dispatcher.dispatch(&self.message(&job)?, &recipients, &[]).await;
                rejected += result.map_err(Failure::because)?.rejected.len() as u64;
                progress(answered.fetch_add(1, Relaxed) + 1);
            }
            Ok::<_, Failure>(rejected)
        };
        let rejected = try_join_all((0..connections).map(connection)).await?;
        Ok(Sent { answered: answered.load(Relaxed), rejected: rejected.iter().sum() })
    }

    fn due(&self, start: Instant, number: u64) -> Option<Instant> {
        let rate = self.rate?;
        // In microseconds: an accumulated error of less than 1 µs for each message.
        Some(start + Duration::from_micros(number * 1_000_000 / rate))
    }

    fn is_early(&self, start: Instant, number: u64) -> bool {
        self.due(start, number).is_some_and(|due| due > Instant::now())
    }

    async fn wait_for_turn(&self, start: Instant, number: u64) {
        if let Some(due) = self.due(start, number) {
            sleep_until(due).await;
        }
    }

    /// Returns the data of a message: its number, the time, and padding.
    fn data(&self, n: u64) -> String {
        let mut data = format!(r#"{{"n":{n},"at":{},"fill":""#, self.deliveries.now_us());
        let missing = self.bytes.saturating_sub(data.len() + 2);
        data.extend(std::iter::repeat_n('x', missing));
        data.push_str("\"}");
        data
    }

    fn line(&self, job: &Job<'_>) -> String {
        let mut line = format!(r#"{{"message":{{"op":0,"t":"{KIND}","d":{}}},"recipients":["#, self.data(job.n));
        for (at, recipient) in job.recipients.iter().enumerate() {
            // Ids of this program have no characters that JSON escapes. Writing to a String cannot fail.
            _ = write!(line, "{}\"{}\"", if at > 0 { "," } else { "" }, recipient.as_str());
        }
        line.push_str("]}\n");
        line
    }

    fn message(&self, job: &Job<'_>) -> Result<Message, Failure> {
        let data = RawValue::from_string(self.data(job.n)).map_err(Failure::because)?;
        Message::new(KIND, &data).map_err(Failure::because)
    }
}
