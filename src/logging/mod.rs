//! Texts of log lines, and their writer.
//!
//! - `excerpt`: truncates and escapes text from peers
//! - `json_error`, `network_error`, `system_error`: reword errors for operators
//! - `control_chars`: characters that control a terminal
//! - `writer`: writes lines without blocking their caller

mod control_chars;
mod excerpt;
mod json_error;
mod network_error;
mod system_error;
mod writer;

use std::any::Any;

pub use self::{
    control_chars::is_control,
    excerpt::{excerpt, sentence},
    json_error::{json_error, utf8_error},
    network_error::network_error,
    system_error::system_error,
    writer::{LogWriter, dropped_lines},
};

/// Returns the message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
