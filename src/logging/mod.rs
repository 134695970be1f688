//! What every log line goes through: `excerpt` cuts what peers sent.

mod excerpt;

pub use excerpt::{excerpt, json_error, sentence};
