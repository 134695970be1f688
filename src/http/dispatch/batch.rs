//! Groups lines of an NDJSON stream into batches that the hub dispatches together.

use super::{
    request::{Disconnect, DispatchRequest},
    response,
};
use crate::{
    failpoints::{self, Failpoint},
    health::LogLimit,
    http::{Caller, error::ApiError},
    hub::{CommittedBatch, Dispatch, Hub, Outcome, PreparedDispatch, StoreError},
};

/// Maximum number of lines in a batch. Larger batches would delay other callers in the commit thread.
const BATCH_LINES_MAX: usize = 512;

/// Maximum bytes of a batch's lines; the last line may exceed it.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Describes the hub's task for one line.
#[derive(Debug)]
pub(super) enum Task {
    /// Appends a message to logs.
    Append(PreparedDispatch),
    /// Sends an unsynced message.
    SendUnsynced(Dispatch),
    /// Closes connections of users.
    Disconnect(Disconnect),
    /// Returns an error without calling the hub.
    Reject(ApiError),
}

impl Task {
    pub(super) fn new(request: Result<DispatchRequest, ApiError>, hub: &Hub) -> Self {
        match request.and_then(|request| request.checked(hub)) {
            Ok(DispatchRequest::Dispatch(dispatch)) => {
                hub.prepare(dispatch).map_or_else(Self::SendUnsynced, Self::Append)
            }
            Ok(DispatchRequest::Disconnect(disconnect)) => Self::Disconnect(disconnect),
            Err(error) => Self::Reject(error),
        }
    }
}

/// Collects lines in order. Apart from rejected lines, all have the same kind of task.
///
/// So appends share one commit, and no unsynced message overtakes an earlier line. Each line has its own result.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Each line's error; `None`: its task is the next one in `tasks`.
    lines: Vec<Option<ApiError>>,
    bytes: usize,
    tasks: Tasks,
}

#[derive(Debug, Default)]
enum Tasks {
    #[default]
    Empty,
    Append(Vec<PreparedDispatch>),
    SendUnsynced(Vec<Dispatch>),
    Disconnect(Disconnect),
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Adds the task of a line of `bytes` bytes.
    ///
    /// # Errors
    /// Returns the task if this batch cannot hold it, because its kind differs.
    #[expect(clippy::result_large_err, reason = "the error is the argument")]
    pub(super) fn push(&mut self, bytes: usize, task: Task) -> Result<(), Task> {
        let mut rejected = None;
        match (task, &mut self.tasks) {
            (Task::Reject(error), _) => rejected = Some(error),
            (Task::Append(dispatch), Tasks::Append(all)) => all.push(dispatch),
            (Task::SendUnsynced(dispatch), Tasks::SendUnsynced(all)) => all.push(dispatch),
            (Task::Append(dispatch), tasks @ Tasks::Empty) => *tasks = Tasks::Append(vec![dispatch]),
            (Task::SendUnsynced(dispatch), tasks @ Tasks::Empty) => *tasks = Tasks::SendUnsynced(vec![dispatch]),
            (Task::Disconnect(disconnect), tasks @ Tasks::Empty) => *tasks = Tasks::Disconnect(disconnect),
            (task, _) => return Err(task),
        }
        self.lines.push(rejected);
        self.bytes += bytes;
        Ok(())
    }

    /// Runs the tasks of all lines. The first poll passes them to the hub; later polls only wait.
    pub(super) async fn dispatch(self, hub: &Hub) -> BatchResult {
        let result = match self.tasks {
            Tasks::Empty => Outcomes::Ready(Vec::new()),
            Tasks::Append(dispatches) => Outcomes::Committed(hub.commit(dispatches).await),
            Tasks::SendUnsynced(dispatches) => Outcomes::Ready(hub.dispatch_all(dispatches).await),
            Tasks::Disconnect(disconnect) => Outcomes::Ready(vec![Ok(disconnect.run(hub).await)]),
        };
        BatchResult { lines: self.lines, result }
    }
}

/// Limits the log lines about failed lines: a lasting cause fails every line.
static FAILED: LogLimit = LogLimit::new();

/// Holds the results of a batch.
#[derive(Debug)]
pub(super) struct BatchResult {
    lines: Vec<Option<ApiError>>,
    result: Outcomes,
}

#[derive(Debug)]
enum Outcomes {
    /// The error is that of every line with a task: nothing was passed to the store.
    Committed(Result<CommittedBatch, StoreError>),
    /// The result of each line with a task.
    Ready(Vec<Result<Outcome, StoreError>>),
}

impl BatchResult {
    /// Encodes the results of the lines, one result per line.
    pub(super) fn results(self, hub: &Hub, caller: &Caller) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.lines.len() * response::USUAL_BYTES);
        match self.result {
            Outcomes::Committed(Ok(batch)) if failpoints::one_in(Failpoint::SwappedResults, 20) => {
                let mut outcomes: Vec<_> = hub.outcomes(batch).collect();
                outcomes.reverse();
                write(caller, self.lines, outcomes.into_iter(), &mut out);
            }
            Outcomes::Committed(Ok(batch)) => write(caller, self.lines, hub.outcomes(batch), &mut out),
            Outcomes::Committed(Err(error)) => {
                write(caller, self.lines, std::iter::repeat_with(|| Err(error.clone())), &mut out);
            }
            Outcomes::Ready(results) => write(caller, self.lines, results.into_iter(), &mut out),
        }
        out
    }
}

fn write(
    caller: &Caller,
    lines: Vec<Option<ApiError>>,
    mut results: impl Iterator<Item = Result<Outcome, StoreError>>,
    out: &mut Vec<u8>,
) {
    for rejected in lines {
        match rejected {
            Some(error) => error.write(out),
            None => match results.next().expect("the hub has a result for each dispatch") {
                Ok(outcome) => {
                    response::log(caller, &outcome);
                    response::write(&outcome, out);
                }
                Err(error) => {
                    if let Some(suppressed) = FAILED.due("stream") {
                        tracing::error!(%error, suppressed, "dispatches of a stream were rejected");
                    }
                    ApiError::Store(error).write(out);
                }
            },
        }
        out.push(b'\n');
    }
}
