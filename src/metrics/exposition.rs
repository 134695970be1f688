//! Chooses the text format of a scrape: `OpenMetrics`, or the classic format of Prometheus.
//!
//! They differ in the names of counters in `HELP` and `TYPE`, in info metrics, in units, and in the last line.

/// Text format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The classic text format of Prometheus, version 0.0.4.
    Classic,
}

impl Format {
    /// Chooses the format that a client prefers, as Prometheus does: the classic one, unless the client accepts
    /// `OpenMetrics` and does not prefer the classic one.
    pub fn accepted<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let (mut best, mut best_weight) = (Self::Classic, 0);
        for item in values.flat_map(|value| value.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut version, mut weight) = ("", 1000);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "version" => version = value.trim().trim_matches('"'),
                    "q" => weight = thousandths(value.trim()),
                    _ => {}
                }
            }
            let format = match (kind.as_str(), version) {
                ("application/openmetrics-text", "" | "0.0.1" | "1.0.0") => Self::OpenMetrics,
                ("text/plain", "" | "0.0.4") => Self::Classic,
                _ => continue,
            };
            // Of equal weights the first counts.
            if weight > best_weight {
                (best, best_weight) = (format, weight);
            }
        }
        best
    }

    /// Returns the content type of a response in this format.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Returns a scrape in this format. `text` is in `OpenMetrics`.
    pub(super) fn convert(self, text: String) -> String {
        if self == Self::OpenMetrics { text } else { classic(&text) }
    }
}

/// Parses a weight from 0 to 1. A malformed one counts as 0.
fn thousandths(weight: &str) -> i32 {
    weight.parse::<f32>().map_or(0, |weight| (weight.clamp(0.0, 1.0) * 1000.0) as i32)
}

fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    let mut help = None;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), text) => help = text,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    kind => ("", kind),
                };
                let help = help.take().unwrap_or_default();
                out.extend(["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => out.extend([line, "\n"]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_header_selects_the_format() {
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                                  application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                                  text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (&[][..], Format::Classic),
            (&["*/*"], Format::Classic),
            (&["text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"], Format::Classic),
            (&[PROMETHEUS], Format::OpenMetrics),
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], Format::Classic),
            (&["Application/OpenMetrics-Text; Version=\"1.0.0\""], Format::OpenMetrics),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["application/openmetrics-text;version=9.0.0"], Format::Classic),
            (&["application/openmetrics-text;q=0"], Format::Classic),
            (&["application/openmetrics-text;q=x"], Format::Classic),
            (&["application/openmetrics-text;q=0.5, text/plain"], Format::Classic),
            (&["text/plain;q=0.2", "application/openmetrics-text;q=0.3"], Format::OpenMetrics),
            (&[";;=,,q=1", "application/vnd.google.protobuf"], Format::Classic),
        ] {
            assert_eq!(Format::accepted(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn classic_format_names_counters_and_infos_as_their_samples() {
        let open = "# HELP a Events. All of them.\n# TYPE a counter\na_total 1\n# HELP b Info.\n# TYPE b info\n\
                    b_info{version=\"1\"} 1\n# HELP c_seconds Time.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\n\
                    c_seconds 2.0\n# EOF\n";
        let classic = "# HELP a_total Events. All of them.\n# TYPE a_total counter\na_total 1\n# HELP b_info Info.\n\
                       # TYPE b_info gauge\nb_info{version=\"1\"} 1\n# HELP c_seconds Time.\n# TYPE c_seconds gauge\n\
                       c_seconds 2.0\n";
        assert_eq!(Format::Classic.convert(open.into()), classic);
        assert_eq!(Format::OpenMetrics.convert(open.into()), open);
    }
}
