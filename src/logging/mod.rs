//! What every log line goes through: `excerpt` cuts what peers sent, `json_error` words errors of the JSON reader, `network_error`
//! those of connections, `system_error` those of the system, `steers` knows the characters that a terminal obeys, `writer` keeps
//! lines from holding anything up.

mod excerpt;
mod json_error;
mod network_error;
mod steers;
mod system_error;
mod writer;

use std::any::Any;

pub use self::{
    excerpt::{excerpt, sentence},
    json_error::{json_error, utf8_error},
    network_error::network_error,
    steers::steers,
    system_error::system_error,
    writer::{LogWriter, dropped_lines},
};

/// Returns the message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
