//! Tests of the complete embedded store.

mod attach;
pub(super) mod backpressure;
mod backup;
mod connected;
pub(super) mod counts;
mod erase;
mod erase_steps;
mod events;
mod figures;
pub(super) mod flush;
mod full_disk;
pub(super) mod golden;
pub(super) mod intercept;
mod lossy_restarts;
mod merge;
mod opening;
mod outbox_power_cut;
pub(super) mod power_cut;
pub(super) mod power_cut_steps;
mod shared_bodies;
pub(super) mod steps;
mod wait;
