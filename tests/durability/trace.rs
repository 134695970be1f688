//! What `strace -f -tt -y` wrote, as calls with a beginning and an end.

use std::collections::HashMap;

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Path of the file its first argument is a descriptor of; for sockets `socket:[…]` or the like.
    pub target: String,
    /// All arguments, as printed.
    pub arguments: String,
    /// What it returned, as printed: `= 12` without the sign.
    pub result: String,
    /// Lines of the trace at which it was entered and left.
    pub entered: usize,
    /// See `entered`.
    pub left: usize,
}

impl Call {
    /// Whether it returned without an error.
    pub fn succeeded(&self) -> bool {
        self.result.split(' ').next().and_then(|number| number.parse::<i64>().ok()).is_some_and(|number| number >= 0)
    }

    /// Whether it makes a file durable.
    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }
}

/// All calls that have returned, in the order in which they were entered.
pub fn parse(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    for (at, line) in trace.lines().enumerate() {
        // "PID TIME call(arguments) = result", with the process id padded.
        let Some((pid, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((_, text)) = rest.trim_start().split_once(' ') else { continue };
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            open.insert(pid, (at, begun.to_owned()));
        } else if text.starts_with("<... ") {
            let Some((_, end)) = text.split_once(" resumed>") else { continue };
            let Some((entered, begun)) = open.remove(pid) else { continue };
            calls.extend(call(&format!("{begun}{end}"), entered, at));
        } else {
            calls.extend(call(text, at, at));
        }
    }
    calls.sort_by_key(|call| call.entered);
    calls
}

fn call(text: &str, entered: usize, left: usize) -> Option<Call> {
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
        left,
    })
}

/// Holds that answer number `n` (counted in `markers`) was written only after the file in `store` that `markers[n]` was
/// written to had been synced, successfully, from beginning to end in between.
///
/// # Errors
/// With the first answer that came too early.
pub fn synced_before_answered(calls: &[Call], store: &str, markers: &[String]) -> Result<(), String> {
    let answers: Vec<&Call> = calls
        .iter()
        .filter(|call| matches!(call.name.as_str(), "write" | "writev" | "sendto" | "sendmsg"))
        .filter(|call| !call.target.starts_with('/') && call.arguments.contains("\"HTTP/1.1 200"))
        .collect();
    if answers.len() != markers.len() {
        return Err(format!("{} answers to {} dispatches", answers.len(), markers.len()));
    }
    for (marker, answer) in markers.iter().zip(answers) {
        let written = calls
            .iter()
            .filter(|call| call.target.starts_with(store) && call.name.contains("write") && call.succeeded())
            .find(|call| call.arguments.contains(marker.as_str()))
            .ok_or_else(|| format!("{marker} was never written to the store"))?;
        let synced = calls
            .iter()
            .filter(|call| call.is_sync() && call.target == written.target && call.succeeded())
            .any(|sync| written.left < sync.entered && sync.left < answer.entered);
        if !synced {
            return Err(format!(
                "{marker}: written to {} at line {}, answered at line {}, and no successful sync in between",
                written.target, written.left, answer.entered
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
    const ANSWER: &str = r#"8 10:00:00.3 sendto(12<TCP:[1->2]>, "HTTP/1.1 200 OK\r\n", 17, 0, NULL, 0) = 17"#;

    fn check(lines: &[&str]) -> Result<(), String> {
        synced_before_answered(&parse(&lines.join("\n")), "/s", &["mark-1".to_owned()])
    }

    #[test]
    fn the_right_order_passes() {
        assert_eq!(check(&[WRITE, SYNC, ANSWER]), Ok(()));
        assert_eq!(check(&[SYNC, WRITE, SYNC, ANSWER]), Ok(()));
    }

    #[test]
    fn an_answer_without_a_sync_is_caught() {
        assert!(check(&[WRITE, ANSWER]).is_err());
        assert!(check(&[SYNC, WRITE, ANSWER]).is_err());
        assert!(check(&[WRITE, ANSWER, SYNC]).is_err());
    }

    #[test]
    fn a_sync_that_failed_or_was_of_another_file_is_caught() {
        assert!(check(&[WRITE, &SYNC.replace("= 0", "= -1 EIO (Input/output error)"), ANSWER]).is_err());
        assert!(check(&[WRITE, &SYNC.replace("/s/db", "/s/other"), ANSWER]).is_err());
        assert!(check(&[WRITE, &SYNC.replace("fdatasync", "sync_file_range"), ANSWER]).is_err());
    }

    #[test]
    fn a_write_that_never_was_is_caught() {
        assert!(check(&[SYNC, ANSWER]).is_err());
        assert!(check(&[&WRITE.replace("/s/db", "/elsewhere"), SYNC, ANSWER]).is_err());
        assert!(check(&[WRITE, SYNC]).is_err());
    }

    #[test]
    fn calls_that_overlap_are_put_together() {
        let (begun, done) =
            ("7 10:00:00.2 fdatasync(9</s/db> <unfinished ...>", "7 10:00:00.4 <... fdatasync resumed>) = 0");
        assert_eq!(check(&[WRITE, begun, done, ANSWER]), Ok(()));
        assert!(check(&[WRITE, begun, ANSWER, done]).is_err());
        assert!(check(&[begun, WRITE, done, ANSWER]).is_err());
    }
}
