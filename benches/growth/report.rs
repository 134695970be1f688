//! Shows the figures as Markdown tables and plots, and writes them into the guide.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    connections::Size,
    guide,
    svg::{self, Panel, Series},
    work::{BYTES, BYTES_LARGE, FACTOR, Row},
};

/// File of the plots.
const PLOTS: &str = "data/benchmarks/growth.svg";

/// Returns the table of work: microseconds in each form.
pub fn work_table(rows: &[Row]) -> String {
    let mut table = format!(
        "| µs of server CPU for each message | 1,000 users, 256 bytes | {FACTOR}× users | {FACTOR}× messages | {BYTES_LARGE} bytes |\n\
         |---|---|---|---|---|\n"
    );
    for Row { name, forms } in rows {
        let cell = |form: &Option<f64>| form.map_or("–".to_owned(), guide::short);
        let cells: Vec<_> = forms.iter().map(cell).collect();
        // Writing to a String cannot fail.
        _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
    }
    table
}

/// Returns the table of connections.
pub fn connections_table(sizes: &[Size]) -> String {
    let mut table =
        "| connections | memory of each: idle; after broadcasts | connect | heartbeats | a broadcast per second, \
                     1 in 10 reconnects | its p50 | p99 | maximum |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for size in sizes {
        // Writing to a String cannot fail.
        _ = writeln!(
            table,
            "| {} | {:.1} kB; {:.1} kB | {:.0} µs | {:.1} % of a core | {:.0} % of a core | {} ms | {} ms | {} ms |",
            size.clients,
            size.bytes / 1000.0,
            size.bytes_after / 1000.0,
            size.connect_us,
            size.idle_percent,
            size.busy_percent,
            guide::short(size.p50),
            guide::short(size.p99),
            guide::short(size.max),
        );
    }
    table
}

/// Writes tables and plots into the guide.
pub fn write(rows: &[Row], sizes: &[Size], rounds: usize) {
    let plots = Path::new(env!("CARGO_MANIFEST_DIR")).join(PLOTS);
    fs::create_dir_all(plots.parent().expect("a directory of the plots")).expect("a directory");
    fs::write(&plots, draw(rows, sizes)).expect("a file that can be written");
    let block = format!(
        "{}\n{}\n{}\n![Cost against size](../../{PLOTS})",
        circumstances(rounds),
        work_table(rows),
        connections_table(sizes)
    );
    guide::replace("benchmarks.md", "growth", &block);
}

/// States date, machine and rounds.
fn circumstances(rounds: usize) -> String {
    format!("{}, medians of {rounds}. Client and server share the cores.\n", guide::date_and_machine())
}

/// Draws the cost of each form against the base, and memory against connections.
fn draw(rows: &[Row], sizes: &[Size]) -> String {
    let growth = |form: usize, factor: usize| {
        let series = |row: &Row| {
            let (base, grown) = ((*row.forms.first()?)?, (*row.forms.get(form)?)?);
            Some(Series { name: row.name, points: vec![(1.0, 1.0), (factor as f64, grown / base)] })
        };
        let relative = |row: &&Row| !row.name.starts_with("its ");
        rows.iter().filter(relative).filter_map(series).collect()
    };
    let of = |name, figure: fn(&Size) -> f64| Series {
        name,
        points: sizes.iter().map(|size| (size.clients as f64, figure(size))).collect(),
    };
    let titles =
        ["cost with 10× users, base = 1", "cost with 10× messages, base = 1", "cost with 4 KiB (16×), base = 1"];
    let [users, messages, bytes] = titles;
    let panels = [
        Panel { title: users, series: growth(1, FACTOR) },
        Panel { title: messages, series: growth(2, FACTOR) },
        Panel { title: bytes, series: growth(3, BYTES_LARGE / BYTES) },
        Panel { title: "memory of a connection, kB", series: vec![of("idle", |size| size.bytes / 1000.0)] },
    ];
    svg::draw(&panels, "times the base; connections")
}
