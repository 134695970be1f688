//! Reads CPU time and memory of the server from its status.

use mesa::dispatcher::{Dispatcher, Status};

use crate::error::Failure;

/// Resources that a server has used until now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time, if the server's system reports it.
    pub cpu_seconds: Option<f64>,
    /// Resident memory, if the server's system reports it.
    pub resident_bytes: Option<u64>,
}

impl Usage {
    pub async fn of(dispatcher: &Dispatcher) -> Result<Self, Failure> {
        let Status { process, .. } = dispatcher.status().await.map_err(Failure::because)?;
        let process = process.unwrap_or_default();
        Ok(Self { cpu_seconds: process.cpu_seconds, resident_bytes: process.resident_bytes })
    }

    /// Returns the CPU time since an earlier usage, in seconds.
    pub fn cpu_since(&self, earlier: &Self) -> Option<f64> {
        Some(self.cpu_seconds? - earlier.cpu_seconds?)
    }

    /// Returns how much memory has grown since an earlier usage, in bytes. Negative if it has shrunk.
    pub fn memory_since(&self, earlier: &Self) -> Option<i64> {
        Some(self.resident_bytes?.cast_signed() - earlier.resident_bytes?.cast_signed())
    }
}
