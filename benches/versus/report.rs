//! Shows the medians as a table, as JSON and as bar charts, and writes them into the guide.

use std::{fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    bars::{self, Panel},
    guide,
    work::{Figures, Outcome, RATE, Size, Work},
};

/// Files of the results in the repository.
const CHARTS: &str = "data/benchmarks/versus.svg";
const JSON: &str = "data/benchmarks/versus.json";

/// Outcomes of all rounds.
pub struct Results {
    contestants: Vec<&'static str>,
    /// For each contestant and each work, in the order of [`Work::ALL`].
    figures: Vec<Vec<Vec<Figures>>>,
}

impl Results {
    pub fn new(contestants: Vec<&'static str>) -> Self {
        let figures = vec![vec![Vec::new(); Work::ALL.len()]; contestants.len()];
        Self { contestants, figures }
    }

    /// Records an outcome, and prints it.
    pub fn record(&mut self, round: usize, column: usize, work: Work, outcome: Outcome) {
        let name = self.contestants[column];
        match outcome {
            Ok(figures) => {
                println!("round {round}, {name}, {}: {}", title(work), cell(work, figures));
                self.figures[column][work as usize].push(figures);
            }
            Err(error) => println!("round {round}, {name}, {}: failed: {error}", title(work)),
        }
    }

    fn median(&self, column: usize, work: Work) -> Option<Figures> {
        let samples = &self.figures[column][work as usize];
        let of = |figure: fn(&Figures) -> f64| median(samples.iter().map(figure).collect());
        let latency = |figure: fn((f64, f64)) -> f64| {
            median(samples.iter().filter_map(|each| each.latency_us).map(figure).collect())
        };
        Some(Figures {
            cost: of(|each| each.cost)?,
            rate: of(|each| each.rate)?,
            latency_us: latency(|(p50, _)| p50).zip(latency(|(_, p99)| p99)),
        })
    }

    /// Returns the table in Markdown.
    pub fn table(&self) -> String {
        let mut table =
            format!("| work | {} |\n|---|{}\n", self.contestants.join(" | "), "---|".repeat(self.contestants.len()));
        for work in Work::ALL {
            let cell = |column| self.median(column, work).map_or("–".to_owned(), |figures| cell(work, figures));
            let cells: Vec<_> = (0..self.contestants.len()).map(cell).collect();
            // Writing to a String cannot fail.
            _ = writeln!(table, "| {} | {} |", title(work), cells.join(" | "));
        }
        table
    }

    fn json(&self, rounds: usize, size: Size) -> Value {
        let row = |(column, name): (usize, &&str)| {
            let figures = |work: &Work| {
                let value = self.median(column, *work).map(|figures| {
                    json!({ cost_key(*work): figures.cost, "perSecond": figures.rate,
                        "p50Us": figures.latency_us.map(|(p50, _)| p50), "p99Us": figures.latency_us.map(|(_, p99)| p99) })
                });
                (format!("{work:?}"), json!(value))
            };
            json!({ "name": name, "work": Work::ALL.iter().map(figures).collect::<serde_json::Map<_, _>>() })
        };
        let contestants: Vec<_> = self.contestants.iter().enumerate().map(row).collect();
        json!({ "circumstances": circumstances(rounds), "users": size.users, "contestants": contestants })
    }

    /// Draws a panel for each work.
    fn charts(&self) -> String {
        let panel = |work: &Work| {
            let bar = |column: usize| Some((self.contestants[column], self.median(column, *work)?.cost / unit(*work)));
            Panel { title: chart_title(*work), bars: (0..self.contestants.len()).filter_map(bar).collect() }
        };
        bars::draw(&Work::ALL.iter().map(panel).collect::<Vec<_>>())
    }
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

fn title(work: Work) -> &'static str {
    match work {
        Work::FanOut => "one message to all: CPU for each delivery; deliveries",
        Work::Unicast => "one to one at full speed: CPU; messages",
        Work::Latency => "one to one at 2,000/s: CPU; p50, p99",
        Work::Enqueue => "messages for offline users: CPU; messages",
        Work::Drain => "they connect and receive: CPU; messages",
        Work::Idle => "memory of an idle connection",
        Work::Connect => "connect and authenticate: CPU; connections",
    }
}

fn chart_title(work: Work) -> &'static str {
    match work {
        Work::FanOut => "One message to all, µs of CPU per delivery",
        Work::Unicast => "One to one at full speed, µs of CPU",
        Work::Latency => "One to one at 2,000/s, µs of CPU",
        Work::Enqueue => "Message for an offline user, µs of CPU",
        Work::Drain => "Pending message received, µs of CPU",
        Work::Idle => "Memory of an idle connection, kB",
        Work::Connect => "Connect and authenticate, µs of CPU",
    }
}

/// Returns the unit of the cost: microseconds, or kilobytes.
fn unit(work: Work) -> f64 {
    if work == Work::Idle { 1000.0 } else { 1.0 }
}

fn cost_key(work: Work) -> &'static str {
    if work == Work::Idle { "bytes" } else { "cpuUs" }
}

fn cell(work: Work, figures: Figures) -> String {
    let cost = figures.cost / unit(work);
    match (work, figures.latency_us) {
        (Work::Idle, _) => format!("{cost:.1} kB"),
        (_, Some((p50, p99))) => format!("{} µs; {p50:.0} µs, {:.1} ms", guide::short(cost), p99 / 1000.0),
        _ => format!("{} µs; {}/s", guide::short(cost), thousands(figures.rate)),
    }
}

/// Formats a rate in thousands.
fn thousands(rate: f64) -> String {
    format!("{} k", guide::short(rate / 1000.0))
}

/// States date, machine and rounds.
fn circumstances(rounds: usize) -> String {
    let plural = if rounds == 1 { "one round" } else { "medians of all rounds" };
    format!("{}, {plural} ({rounds}). Servers and load share the cores.", guide::date_and_machine())
}

/// Writes JSON and charts into `target`, or into the repository with the table in the guide.
pub fn write(results: &Results, rounds: usize, size: Size, is_for_guide: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |file: &str| if is_for_guide { root.join(file) } else { root.join("target").join(file) };
    let (json, charts) = (path(JSON), path(CHARTS));
    fs::create_dir_all(json.parent().expect("a directory of the results")).expect("a directory");
    fs::write(&json, format!("{:#}\n", results.json(rounds, size))).expect("a file that can be written");
    fs::write(&charts, results.charts()).expect("a file that can be written");
    println!("wrote {} and {}", json.display(), charts.display());
    if is_for_guide {
        let block = format!("{}\n\n{}\n![Cost of each server](../../{CHARTS})", circumstances(rounds), results.table());
        guide::replace("benchmarks.md", "versus", &block);
    }
}

/// Checks medians, formats and that titles state the rate that is used.
pub fn check() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(Vec::new()), None);
    assert!(title(Work::Latency).contains("2,000") && RATE == 2_000);
    for (at, work) in Work::ALL.into_iter().enumerate() {
        assert_eq!(at, work as usize);
    }
    let figures = Figures { cost: 2_500.0, rate: 150_000.0, latency_us: None };
    assert_eq!(cell(Work::Idle, figures), "2.5 kB");
    assert_eq!(cell(Work::Unicast, Figures { cost: 0.5, ..figures }), "0.50 µs; 150 k/s");
}
