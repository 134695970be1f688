//! Encodes the result of a dispatch as JSON.

use std::io::Write as _;

use crate::hub::Outcome;

/// Capacity in bytes for a result in which no recipient is rejected.
pub(super) const USUAL_BYTES: usize = 128;

/// Appends the encoded result, without a line end.
pub(super) fn write(outcome: &Outcome, out: &mut Vec<u8>) {
    let Outcome { recipients, online, offline, stored, .. } = outcome;
    // Writing to a Vec cannot fail, and a string always has a JSON form.
    let infallible = "writing to a Vec cannot fail";
    let begun = write!(
        out,
        r#"{{"recipients":{recipients},"online":{online},"offline":{offline},"stored":{stored},"rejected":["#
    );
    begun.expect(infallible);
    for (at, rejected) in outcome.rejected.iter().enumerate() {
        out.extend_from_slice(if at == 0 { br#"{"user":"# } else { br#",{"user":"# });
        rejected.write_user(out);
        write!(out, r#","reason":"{}"}}"#, rejected.reason.as_str()).expect(infallible);
    }
    write!(out, r#"],"duplicate":{}}}"#, outcome.duplicate).expect(infallible);
}

#[cfg(test)]
mod tests;
