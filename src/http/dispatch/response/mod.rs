//! Encodes the result of a dispatch as JSON.

use std::io::Write as _;

use crate::hub::Outcome;

/// Size in bytes of a usual result, in which no recipient is rejected.
pub(super) const USUAL_BYTES: usize = 128;

/// Appends a result, without a line end.
pub(super) fn write(outcome: &Outcome, out: &mut Vec<u8>) {
    let Outcome { recipients, online, offline, stored, .. } = outcome;
    // Writing to a Vec cannot fail, and a string always has a JSON form.
    let infallible = "writing to a Vec cannot fail";
    let begun = write!(
        out,
        r#"{{"recipients":{recipients},"online":{online},"offline":{offline},"stored":{stored},"rejected":["#
    );
    begun.expect(infallible);
    for (at, one) in outcome.rejected.iter().enumerate() {
        out.extend_from_slice(if at == 0 { br#"{"user":"# } else { br#",{"user":"# });
        one.write_user(out);
        write!(out, r#","reason":"{}"}}"#, one.reason.as_str()).expect(infallible);
    }
    write!(out, r#"],"duplicate":{}}}"#, outcome.duplicate).expect(infallible);
}

#[cfg(test)]
mod tests;
