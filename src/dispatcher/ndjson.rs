//! Many dispatches over one request: a line each, and a result for each, in order, while both go on.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use reqwest::{Body, Method, Response};

use super::{ANSWER_BYTES_MAX, Dispatch, DispatchError, DispatchResult, Dispatcher, Refusal, TIMEOUT, response};
use crate::logging::json_error;

/// Pieces that were handed over and wait for the connection to take them.
const PIECES_MAX: usize = 2;

/// Bytes of lines that are handed over together.
const PIECE_BYTES: usize = 32 << 10;

/// Lines for which room is made before they are there.
const LINES_EXPECTED_MAX: usize = 1 << 16;

/// A stream is meant to stay open; this is only so that it has an end.
const STREAM_TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

impl Dispatcher {
    /// Sends messages in the order given, and returns what became of each, in that order: those that were refused do not
    /// hold up the others.
    ///
    /// Where this dispatcher repeats ([`Dispatcher::retrying`]), all of them are held in memory, and what had no result when
    /// a stream broke is sent again over the next one; a stream that gave results counts as a success, after which the
    /// pauses, but not the time, begin anew.
    ///
    /// # Errors
    /// When the server cannot be reached, ends the stream early, or says nothing for thirty seconds. What was sent may
    /// have been taken all the same; with ids it can be said again.
    pub async fn dispatch_all(
        &self,
        dispatches: impl IntoIterator<Item = Dispatch, IntoIter: Send> + Send,
    ) -> Result<Vec<Result<DispatchResult, Refusal>>, DispatchError> {
        let (mut results, dispatches) = (Vec::new(), dispatches.into_iter());
        if self.retry.is_none() {
            self.dispatch_each(dispatches.map(|dispatch| dispatch.body()), &mut results).await?;
            return Ok(results);
        }
        let mut lines = Vec::with_capacity(dispatches.size_hint().0.min(LINES_EXPECTED_MAX));
        for mut dispatch in dispatches {
            if dispatch.id.is_none() {
                dispatch.id = self.made_id(&dispatch.message)?;
            }
            lines.push(dispatch.body()?);
        }
        let mut attempts = self.attempts();
        loop {
            let done = results.len();
            let Err(error) = self.dispatch_each(lines[done..].iter().cloned().map(Ok), &mut results).await else {
                return Ok(results);
            };
            if results.len() > done {
                attempts.went_on();
            }
            attempts.wait_after(error).await?;
        }
    }

    /// Sends lines over one stream and adds what became of each, as far as that was learnt.
    async fn dispatch_each(
        &self,
        bodies: impl Iterator<Item = Result<Vec<u8>, DispatchError>> + Send,
        results: &mut Vec<Result<DispatchResult, Refusal>>,
    ) -> Result<(), DispatchError> {
        let (mut lines, mut answers) = self.stream().await?;
        let before = results.len();
        let send = async move {
            let (mut sent, mut piece) = (0_usize, Vec::new());
            for body in bodies {
                piece.extend(body?);
                piece.push(b'\n');
                sent += 1;
                if piece.len() >= PIECE_BYTES {
                    lines.send_text(std::mem::take(&mut piece)).await?;
                }
            }
            if !piece.is_empty() {
                lines.send_text(piece).await?;
            }
            Ok(sent)
        };
        let receive = async {
            loop {
                match tokio::time::timeout(TIMEOUT, answers.next()).await {
                    Err(_) => return Err(DispatchError::Silent { url: self.shown(), waited: TIMEOUT }),
                    Ok(Err(error)) => return Err(error),
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Ok(Some(result))) => results.push(result),
                }
            }
        };
        // Both at once: the server takes no more lines in than it can get rid of results.
        let (sent, received) = tokio::join!(send, receive);
        // Where the stream broke, the answers say why; that nothing more can be sent is only what follows.
        received?;
        let (sent, got): (usize, usize) = (sent?, results.len() - before);
        if got == sent {
            return Ok(());
        }
        let reason = format!("the stream ended after {got} of {sent} results");
        Err(DispatchError::Broken { url: self.shown(), reason })
    }

    /// Opens a stream: where lines are sent, and where their results come from. Both have to be used at once, from two
    /// tasks or with a `select!`: while results are not taken, the server takes no more lines.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn stream(&self) -> Result<(Lines, Answers), DispatchError> {
        let (pieces, body) = Channel::<Bytes, Infallible>::new(PIECES_MAX);
        let request = self.request(Method::POST, self.url(&["dispatch"])?).timeout(STREAM_TIME_MAX);
        let request = request.header("content-type", "application/x-ndjson").body(Body::wrap(body));
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let answers = Answers { dispatcher: self.clone(), response, begun: Vec::new(), lines: VecDeque::new() };
        Ok((Lines { pieces, url: self.shown() }, answers))
    }
}

impl Dispatcher {
    /// Asks for an answer that has no end: for portals.
    pub(crate) async fn open(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        header: Option<(&'static str, &str)>,
    ) -> Result<Response, DispatchError> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.request(Method::GET, url).timeout(STREAM_TIME_MAX);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let sending = tokio::time::timeout(TIMEOUT, request.send()).await;
        let silent = |_| DispatchError::Silent { url: self.shown(), waited: TIMEOUT };
        let response = sending.map_err(silent)?.map_err(|error| self.failed(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }
}

/// Where the lines of a stream are sent. Dropping it says that this was all; the results go on until the last.
pub struct Lines {
    pieces: Sender<Bytes, Infallible>,
    url: String,
}

impl Lines {
    /// Sends one.
    ///
    /// # Errors
    /// When it has no JSON form, or the stream is over: the answers tell why.
    pub async fn send(&mut self, dispatch: &Dispatch) -> Result<(), DispatchError> {
        let mut line = dispatch.body()?;
        line.push(b'\n');
        self.send_text(line).await
    }

    /// Sends what is lines already, cut wherever it may be.
    ///
    /// # Errors
    /// When the stream is over: the answers tell why.
    pub async fn send_text(&mut self, text: Vec<u8>) -> Result<(), DispatchError> {
        let sent = self.pieces.send_data(text.into()).await;
        sent.map_err(|_| DispatchError::Broken { url: self.url.clone(), reason: "the stream is over".into() })
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Where the results of a stream come from, in the order of the lines.
#[derive(Debug)]
pub struct Answers {
    dispatcher: Dispatcher,
    response: Response,
    /// What there is of a line that is not whole yet.
    begun: Vec<u8>,
    /// What is whole and was not taken.
    lines: VecDeque<Vec<u8>>,
}

impl Answers {
    /// What became of the next line; `None` after the last. Safe to drop half-way, as in `select!`: nothing is lost.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no answer.
    pub async fn next(&mut self) -> Result<Option<Result<DispatchResult, Refusal>>, DispatchError> {
        let Some(line) = self.next_line().await? else { return Ok(None) };
        if let Ok(result) = serde_json::from_slice(&line) {
            return Ok(Some(Ok(result)));
        }
        match serde_json::from_slice::<response::Refused>(&line) {
            Ok(refused) => Ok(Some(Err(refused.error))),
            Err(error) => Err(self.dispatcher.strange(&format!("its answer cannot be read ({})", json_error(&error)))),
        }
    }

    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, DispatchError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(piece) = self.response.chunk().await.map_err(|error| self.dispatcher.failed(&error))? else {
                if self.begun.is_empty() {
                    return Ok(None);
                }
                return Err(self.dispatcher.strange("its last answer is not whole"));
            };
            let mut parts = piece.split(|byte| *byte == b'\n');
            // There is always one part, if an empty one.
            self.begun.extend_from_slice(parts.next().unwrap_or_default());
            for part in parts {
                self.lines.push_back(std::mem::replace(&mut self.begun, part.to_vec()));
            }
            if self.begun.len() > ANSWER_BYTES_MAX {
                return Err(self
                    .dispatcher
                    .strange(&format!("its answer has more than {} MiB", ANSWER_BYTES_MAX >> 20)));
            }
        }
    }
}
