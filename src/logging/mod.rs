//! What every log line goes through: `excerpt` cuts what peers sent, `writer` keeps lines from holding anything up.

mod excerpt;
mod writer;

use std::any::Any;

pub use self::{
    excerpt::{excerpt, json_error, sentence},
    writer::{LogWriter, dropped_lines},
};

/// Returns the message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
