//! Tests of the embedded store as a whole.

pub(super) mod counts;
pub(super) mod golden;
pub(super) mod intercept;
pub(super) mod power_cut;
pub(super) mod space;
