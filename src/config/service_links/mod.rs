//! Recognizes environment variables that Kubernetes and Docker inject for other services.
//!
//! A Kubernetes Service named `mesa` gives every pod of its namespace `MESA_SERVICE_HOST`, `MESA_SERVICE_PORT`,
//! `MESA_PORT=tcp://10.96.0.1:4000`, `MESA_PORT_4000_TCP` and variants. Docker's container links have the same names.
//! Some of them collide with settings: `MESA_PORT` here, `MESA_REDIS_PROTOCOL_PORT` for a Service named
//! `mesa-redis-protocol`. Only the value distinguishes them: no setting whose name ends in `_PORT` has a value with a
//! scheme.

/// Schemes of the values of such variables.
const SCHEMES: &[&str] = &["tcp://", "udp://", "sctp://"];

/// Variables that the warning names. It counts the others.
const NAMED_MAX: usize = 4;

/// Returns whether a variable was injected for a service, and not set for this program.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    if has_scheme(value) && name.ends_with("_PORT") {
        return true;
    }
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    // `_PORT_4000_TCP`, with or without one further word.
    name.match_indices("_PORT_").any(|(at, infix)| {
        let mut words = name[at + infix.len()..].split('_');
        let number =
            words.next().is_some_and(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()));
        let protocol = words.next().is_some_and(|word| matches!(word, "TCP" | "UDP" | "SCTP"));
        let rest: Vec<&str> = words.collect();
        number && protocol && matches!(rest[..], [] | ["PROTO" | "PORT" | "ADDR"])
    })
}

fn has_scheme(value: &str) -> bool {
    SCHEMES.iter().any(|scheme| value.trim_start().starts_with(scheme))
}

/// Returns a warning about ignored service variables. `settings` are those that have the name of a setting.
pub(super) fn warning(links: &[String], settings: &[String]) -> Option<String> {
    if links.is_empty() {
        return None;
    }
    let mut named: Vec<&str> =
        settings.iter().chain(links.iter().filter(|link| !settings.contains(link))).map(String::as_str).collect();
    let more = named.len().saturating_sub(NAMED_MAX);
    named.truncate(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let usable = match settings {
        [] => String::new(),
        settings => format!(", and makes {} usable as a setting", settings.join(" and ")),
    };
    let (variables, are, them) = if links.len() == 1 { ("variable", "is", "it") } else { ("variables", "are", "them") };
    Some(format!(
        "the environment {variables} {}{more} {are} ignored: Kubernetes sets {them} for a Service of that name (or Docker \
         for a link), not for this server; `enableServiceLinks: false` in the pod's spec removes {them}{usable}",
        named.join(", ")
    ))
}

#[cfg(test)]
mod tests;
