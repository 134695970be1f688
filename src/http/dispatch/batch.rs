//! Lines that were at hand together, and what becomes of them.

use std::sync::Arc;

use super::{answer, read::Asked};
use crate::{
    http::{Api, error::ApiError},
    hub::{Dispatch, Hub},
    message::Recipients,
};

/// Lines of one batch. More would let others wait longer for their turn in the commit thread.
const BATCH_LINES_MAX: usize = 512;

/// Bytes of one batch's lines (one line at least).
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Lines, in order: what each asks for, or why it is refused.
#[derive(Debug, Default)]
pub(super) struct Batch {
    lines: Vec<Result<Asked, ApiError>>,
    bytes: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Takes in a line of so many bytes.
    pub(super) fn push(&mut self, bytes: usize, line: Result<Asked, ApiError>) {
        self.lines.push(line);
        self.bytes += bytes;
    }

    /// Does what the lines ask for, one after the other; returns their results, one a line.
    pub(super) async fn dispatch(self, api: Arc<Api>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.lines.len() * answer::BYTES_USUAL);
        let mut run = Run::default();
        for line in self.lines {
            match line {
                Ok(Asked::Dispatch(dispatch)) => {
                    if !run.takes(&dispatch) {
                        run.dispatch(&api.hub, &mut out).await;
                    }
                    run.push(dispatch);
                }
                Ok(Asked::Disconnect(disconnect)) => {
                    // Behind the messages before it, as it stands.
                    run.dispatch(&api.hub, &mut out).await;
                    answer::write(&disconnect.run(&api.hub), &mut out);
                    out.push(b'\n');
                }
                Err(error) => run.lines.push(Some(error)),
            }
        }
        run.dispatch(&api.hub, &mut out).await;
        out
    }
}

/// Lines whose messages are taken or refused together: all of them are kept, or none is.
#[derive(Default)]
struct Run {
    dispatches: Vec<Dispatch>,
    /// For each line why it was refused; `None`: what it asks for is the next of `dispatches`.
    lines: Vec<Option<ApiError>>,
    kept: bool,
}

impl Run {
    fn takes(&self, dispatch: &Dispatch) -> bool {
        self.dispatches.is_empty() || self.kept == is_kept(dispatch)
    }

    fn push(&mut self, dispatch: Dispatch) {
        self.kept = is_kept(&dispatch);
        self.dispatches.push(dispatch);
        self.lines.push(None);
    }

    /// Dispatches what is there and writes its results; afterwards nothing is there.
    async fn dispatch(&mut self, hub: &Hub, out: &mut Vec<u8>) {
        let (dispatches, lines) = (std::mem::take(&mut self.dispatches), std::mem::take(&mut self.lines));
        let mut outcomes = if dispatches.is_empty() { Ok(Vec::new()) } else { hub.dispatch_all(dispatches).await }
            .map(Vec::into_iter)
            .map_err(|error| {
                tracing::error!(%error, "dispatches of a stream were not taken");
                ApiError::Store(error)
            });
        for refused in lines {
            match (refused, &mut outcomes) {
                (Some(error), _) => error.write(out),
                (None, Err(error)) => error.write(out),
                (None, Ok(outcomes)) => {
                    answer::write(&outcomes.next().expect("the hub has an outcome for each dispatch"), out);
                }
            }
            out.push(b'\n');
        }
    }
}

fn is_kept(dispatch: &Dispatch) -> bool {
    dispatch.sync && dispatch.recipients != Recipients::Everyone
}
