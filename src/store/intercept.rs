//! A store with calls that a test can intercept.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{
    Append, AppendResult, Attached, BackupError, CommitListener, Contents, Gap, KnownUser, Outbox, ReadLimit,
    ReadResult, SessionReport, Store, StoreError, UserState, result_of_each,
};
use crate::{
    health::Health,
    message::{DeviceId, Seq, UserId},
    metrics::StoreFigures,
};

/// Intercepts calls of a [`Store`]. Calls that a test does not override go to the store itself.
pub(crate) trait InterceptStore: Send + Sync + 'static {
    fn store(&self) -> &dyn Store;

    fn on_append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>> {
        self.store().append_all(appends)
    }

    fn on_append_each(&self, appends: Vec<Append>) -> BoxFuture<'_, Vec<Result<AppendResult, StoreError>>> {
        let count = appends.len();
        Box::pin(async move { result_of_each(self.on_append_all(appends).await, count) })
    }

    fn on_clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.store().clear(user)
    }

    fn on_read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        self.store().read(user, after, limit)
    }

    fn on_read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult> {
        self.store().read_cached(user, after, limit)
    }

    fn on_state(&self, user: &UserId) -> Result<UserState, StoreError> {
        self.store().state(user)
    }

    fn on_users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        self.store().users(after, limit)
    }
}

impl<T: InterceptStore> Store for T {
    fn namespace(&self) -> u32 {
        self.store().namespace()
    }

    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>> {
        self.on_append_all(appends)
    }

    fn append_each(&self, appends: Vec<Append>) -> BoxFuture<'_, Vec<Result<AppendResult, StoreError>>> {
        self.on_append_each(appends)
    }

    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.on_clear(user)
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        self.store().attach(user, device)
    }

    fn detach(&self, user: &UserId, device: Option<&DeviceId>) {
        self.store().detach(user, device);
    }

    fn report(&self, user: &UserId, report: SessionReport) {
        self.store().report(user, report);
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        self.on_read(user, after, limit)
    }

    fn read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult> {
        self.on_read_cached(user, after, limit)
    }

    fn explain_gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Gap>, StoreError> {
        self.store().explain_gaps(user, device, from, to)
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        self.on_state(user)
    }

    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        self.store().pending_bytes(user)
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        self.on_users(after, limit)
    }

    fn on_commit(&self, listener: CommitListener) {
        self.store().on_commit(listener);
    }

    fn failure(&self) -> BoxFuture<'_, StoreError> {
        self.store().failure()
    }

    fn outbox(&self) -> Option<Arc<dyn Outbox>> {
        self.store().outbox()
    }

    fn unreceived_by(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        self.store().unreceived_by(user, seq)
    }

    fn health(&self) -> Arc<Health> {
        self.store().health()
    }

    fn full_reason(&self) -> Option<Arc<str>> {
        self.store().full_reason()
    }

    fn current_step(&self) -> Option<(&'static str, Duration)> {
        self.store().current_step()
    }

    fn figures(&self) -> Option<StoreFigures> {
        self.store().figures()
    }

    fn is_in_memory(&self, user: &UserId) -> bool {
        self.store().is_in_memory(user)
    }

    fn backup(&self, out: &mut dyn std::io::Write) -> Result<Contents, BackupError> {
        self.store().backup(out)
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store().close()
    }
}
