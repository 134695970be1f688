//! Lines that go to the hub together, and what becomes of them.

use super::{
    request::{Asked, Disconnect},
    response,
};
use crate::{
    failpoints::{self, Bug},
    health::LogLimit,
    http::error::ApiError,
    hub::{Dispatch, Hub, Kept, Outcome, StoreError, Taken},
};

/// Lines of one batch. More would let others wait longer for their turn in the commit thread.
const BATCH_LINES_MAX: usize = 512;

/// Bytes of one batch's lines (one line at least).
const BATCH_BYTES_MAX: usize = 256 << 10;

/// What is to be done for one line.
#[derive(Debug)]
pub(super) enum Task {
    /// A message for the log.
    Keep(Kept),
    /// One that passes the log by.
    Pass(Dispatch),
    Disconnect(Disconnect),
    /// Nothing but saying why.
    Refuse(ApiError),
}

impl Task {
    pub(super) fn new(asked: Result<Asked, ApiError>, hub: &Hub) -> Self {
        match asked.and_then(|asked| asked.checked(hub)) {
            Ok(Asked::Dispatch(dispatch)) => hub.keep(dispatch).map_or_else(Self::Pass, Self::Keep),
            Ok(Asked::Disconnect(disconnect)) => Self::Disconnect(disconnect),
            Err(error) => Self::Refuse(error),
        }
    }
}

/// Lines in order. But for those that are refused anyway, all ask for the same kind of thing: so they are taken together
/// or not at all, and what passes the log by does not pass what stands before it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// For each line why it is refused; `None`: it is the next of `tasks`.
    lines: Vec<Option<ApiError>>,
    bytes: usize,
    tasks: Tasks,
}

#[derive(Debug, Default)]
enum Tasks {
    #[default]
    Nothing,
    Keep(Vec<Kept>),
    Pass(Vec<Dispatch>),
    Disconnect(Disconnect),
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Takes in what is to be done for a line of so many bytes.
    ///
    /// # Errors
    /// With the task, where it cannot be done together with what is there.
    #[expect(clippy::result_large_err, reason = "what is given back is what was given")]
    pub(super) fn push(&mut self, bytes: usize, task: Task) -> Result<(), Task> {
        let mut refused = None;
        match (task, &mut self.tasks) {
            (Task::Refuse(error), _) => refused = Some(error),
            (Task::Keep(kept), Tasks::Keep(all)) => all.push(kept),
            (Task::Pass(dispatch), Tasks::Pass(all)) => all.push(dispatch),
            (Task::Keep(kept), tasks @ Tasks::Nothing) => *tasks = Tasks::Keep(vec![kept]),
            (Task::Pass(dispatch), tasks @ Tasks::Nothing) => *tasks = Tasks::Pass(vec![dispatch]),
            (Task::Disconnect(disconnect), tasks @ Tasks::Nothing) => *tasks = Tasks::Disconnect(disconnect),
            (task, _) => return Err(task),
        }
        self.lines.push(refused);
        self.bytes += bytes;
        Ok(())
    }

    /// Does what the lines ask for. Nothing but waiting is done between the first poll and the last.
    pub(super) async fn dispatch(self, hub: &Hub) -> Done {
        let result = match self.tasks {
            Tasks::Nothing => Ok(Told::Passed(Vec::new())),
            Tasks::Keep(kept) => hub.append(kept).await.map(Told::Kept),
            Tasks::Pass(dispatches) => hub.dispatch_all(dispatches).await.map(Told::Passed),
            Tasks::Disconnect(disconnect) => Ok(Told::Passed(vec![disconnect.run(hub).await])),
        };
        Done { lines: self.lines, result }
    }
}

/// A cause that lasts fails every batch.
static FAILED: LogLimit = LogLimit::new();

/// A batch that was done, or could not be.
#[derive(Debug)]
pub(super) struct Done {
    lines: Vec<Option<ApiError>>,
    result: Result<Told, StoreError>,
}

#[derive(Debug)]
enum Told {
    Kept(Taken),
    Passed(Vec<Outcome>),
}

impl Done {
    /// What became of each line, one a line.
    pub(super) fn answers(self, hub: &Hub) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.lines.len() * response::BYTES_USUAL);
        match self.result {
            Ok(Told::Kept(taken)) if failpoints::once_in(Bug::AnswersSwapped, 20) => {
                let mut outcomes: Vec<Outcome> = hub.outcomes(taken).collect();
                outcomes.reverse();
                write(self.lines, outcomes.into_iter(), &mut out);
            }
            Ok(Told::Kept(taken)) => write(self.lines, hub.outcomes(taken), &mut out),
            Ok(Told::Passed(outcomes)) => write(self.lines, outcomes.into_iter(), &mut out),
            Err(error) => {
                if let Some(suppressed) = FAILED.due("stream") {
                    let lines = self.lines.len();
                    tracing::error!(%error, lines, suppressed, "dispatches of a stream were not taken");
                }
                let error = ApiError::Store(error);
                for refused in self.lines {
                    refused.as_ref().unwrap_or(&error).write(&mut out);
                    out.push(b'\n');
                }
            }
        }
        out
    }
}

fn write(lines: Vec<Option<ApiError>>, mut outcomes: impl Iterator<Item = Outcome>, out: &mut Vec<u8>) {
    for refused in lines {
        match refused {
            Some(error) => error.write(out),
            None => response::write(&outcomes.next().expect("the hub has an outcome for each dispatch"), out),
        }
        out.push(b'\n');
    }
}
