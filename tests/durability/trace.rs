//! Parses output of `strace -f -tt -y`, and checks the order of its calls.

use std::collections::HashMap;

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the call.
    pub name: String,
    /// File of the descriptor in the first argument. For a socket: `socket:[…]` or similar.
    pub target: String,
    /// Arguments as `strace` prints them.
    pub arguments: String,
    /// Result as `strace` prints it, without the equals sign: `12`.
    pub result: String,
    /// Line of the trace at which the call begins.
    pub entered: usize,
    /// Line of the trace at which the call returns. Equal to `entered` if not interrupted.
    pub returned: usize,
}

impl Call {
    /// Reports whether the call returned without an error.
    pub fn succeeded(&self) -> bool {
        self.result.split(' ').next().and_then(|number| number.parse::<i64>().ok()).is_some_and(|number| number >= 0)
    }

    /// Reports whether the call makes a file durable.
    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }
}

/// Parses the calls that have returned, in the order in which they were entered.
pub fn parse(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    for (line_number, line) in trace.lines().enumerate() {
        // "PID TIME call(arguments) = result"; the process id is padded.
        let Some((pid, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((_, text)) = rest.trim_start().split_once(' ') else { continue };
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            open.insert(pid, (line_number, begun.to_owned()));
        } else if text.starts_with("<... ") {
            let Some((_, end)) = text.split_once(" resumed>") else { continue };
            let Some((entered, begun)) = open.remove(pid) else { continue };
            calls.extend(parse_call(&format!("{begun}{end}"), entered, line_number));
        } else {
            calls.extend(parse_call(text, line_number, line_number));
        }
    }
    calls.sort_by_key(|call| call.entered);
    calls
}

fn parse_call(text: &str, entered: usize, returned: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let target = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
    Some(Call {
        name: name.to_owned(),
        target: target.to_owned(),
        arguments: arguments.to_owned(),
        result: result.trim().to_owned(),
        entered,
        returned,
    })
}

/// Checks that each marker is synced to the store before its dispatch is answered.
///
/// Response `n` belongs to `markers[n]`. The marker is written to a file in `store`. A sync of that file must begin
/// after this write, and return successfully before the response is written.
///
/// # Errors
/// With the first response that was written too early, or a marker that was not written.
pub fn check_synced_before_response(calls: &[Call], store: &str, markers: &[String]) -> Result<(), String> {
    let responses: Vec<&Call> = calls
        .iter()
        .filter(|call| matches!(call.name.as_str(), "write" | "writev" | "sendto" | "sendmsg"))
        .filter(|call| !call.target.starts_with('/') && call.arguments.contains("\"HTTP/1.1 200"))
        .collect();
    if responses.len() != markers.len() {
        return Err(format!("expected {} responses to as many dispatches, found {}", markers.len(), responses.len()));
    }
    for (marker, response) in markers.iter().zip(responses) {
        let written = calls
            .iter()
            .filter(|call| call.target.starts_with(store) && call.name.contains("write") && call.succeeded())
            .find(|call| call.arguments.contains(marker.as_str()))
            .ok_or_else(|| format!("{marker}: expected a write to the store"))?;
        let synced = calls
            .iter()
            .filter(|call| call.is_sync() && call.target == written.target && call.succeeded())
            .any(|sync| written.returned < sync.entered && sync.returned < response.entered);
        if !synced {
            return Err(format!(
                "{marker}: written to {} at line {}, answered at line {}; expected a successful sync in between",
                written.target, written.returned, response.entered
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &str = r#"7 10:00:00.1 pwrite64(9</s/db>, "\0\1{\"n\":\"mark-1\"}", 64, 4096) = 64"#;
    const SYNC: &str = "7 10:00:00.2 fdatasync(9</s/db>) = 0";
    const RESPONSE: &str = r#"8 10:00:00.3 sendto(12<TCP:[1->2]>, "HTTP/1.1 200 OK\r\n", 17, 0, NULL, 0) = 17"#;

    fn check(lines: &[&str]) -> Result<(), String> {
        check_synced_before_response(&parse(&lines.join("\n")), "/s", &["mark-1".to_owned()])
    }

    #[test]
    fn check_of_write_sync_response_passes() {
        assert_eq!(check(&[WRITE, SYNC, RESPONSE]), Ok(()));
        assert_eq!(check(&[SYNC, WRITE, SYNC, RESPONSE]), Ok(()));
    }

    #[test]
    fn check_of_response_without_sync_fails() {
        assert!(check(&[WRITE, RESPONSE]).is_err());
        assert!(check(&[SYNC, WRITE, RESPONSE]).is_err());
        assert!(check(&[WRITE, RESPONSE, SYNC]).is_err());
    }

    #[test]
    fn check_of_failed_sync_or_sync_of_another_file_fails() {
        assert!(check(&[WRITE, &SYNC.replace("= 0", "= -1 EIO (Input/output error)"), RESPONSE]).is_err());
        assert!(check(&[WRITE, &SYNC.replace("/s/db", "/s/other"), RESPONSE]).is_err());
        assert!(check(&[WRITE, &SYNC.replace("fdatasync", "sync_file_range"), RESPONSE]).is_err());
    }

    #[test]
    fn check_without_write_or_response_fails() {
        assert!(check(&[SYNC, RESPONSE]).is_err());
        assert!(check(&[&WRITE.replace("/s/db", "/other"), SYNC, RESPONSE]).is_err());
        assert!(check(&[WRITE, SYNC]).is_err());
    }

    #[test]
    fn parse_of_interrupted_call_joins_its_parts() {
        let (begin, end) =
            ("7 10:00:00.2 fdatasync(9</s/db> <unfinished ...>", "7 10:00:00.4 <... fdatasync resumed>) = 0");
        assert_eq!(check(&[WRITE, begin, end, RESPONSE]), Ok(()));
        assert!(check(&[WRITE, begin, RESPONSE, end]).is_err());
        assert!(check(&[begin, WRITE, end, RESPONSE]).is_err());
    }
}
