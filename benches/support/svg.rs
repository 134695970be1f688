//! Draws plots as SVG: one panel for each figure, with the size on a logarithmic axis.

use std::fmt::Write;

/// Width and height of a panel, and the margin around its axes.
const PANEL: (f64, f64) = (320.0, 240.0);
const MARGIN: f64 = 48.0;

/// Colors of the series.
const COLORS: [&str; 8] = ["#1b6ca8", "#c8553d", "#4c956c", "#8d6a9f", "#b8860b", "#2a9d8f", "#9d4edd", "#6c757d"];

/// A panel: a figure against the size.
pub struct Panel<'a> {
    /// The figure with its unit.
    pub title: &'a str,
    pub series: Vec<Series<'a>>,
}

/// Points of one series: size and figure.
pub struct Series<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Draws panels side by side, two in a row. `axis` names the size.
pub fn draw(panels: &[Panel<'_>], axis: &str) -> String {
    let rows = panels.len().div_ceil(2);
    let (width, height) = (2.0 * PANEL.0, rows as f64 * PANEL.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = ((at % 2) as f64 * PANEL.0, (at / 2) as f64 * PANEL.1);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">{}</g>", panel.draw(axis));
    }
    svg + "</svg>\n"
}

impl Panel<'_> {
    fn draw(&self, axis: &str) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (low, high) =
            points().fold((f64::MAX, 1.0_f64), |(low, high), (size, _)| (low.min(*size), high.max(*size)));
        let top = points().fold(0.0_f64, |top, (_, figure)| top.max(*figure)).max(f64::MIN_POSITIVE) * 1.1;
        let decades = (high / low).log10().max(1.0);
        let (right, bottom) = (PANEL.0 - 16.0, PANEL.1 - MARGIN);
        let x = |size: f64| MARGIN + (size / low).log10() / decades * (right - MARGIN);
        let y = |figure: f64| bottom - figure / top * (bottom - 32.0);
        let mut svg = format!(
            "<text x=\"{MARGIN}\" y=\"18\" font-weight=\"bold\">{}</text><path d=\"M{MARGIN} 32V{bottom}H{right}\" \
             fill=\"none\" stroke=\"#444\"/><text x=\"{right}\" y=\"{:.0}\" text-anchor=\"end\">{axis}</text>",
            self.title,
            bottom + 32.0
        );
        for tick in 0..=2 {
            let figure = top * f64::from(tick) / 2.0;
            let label = if top < 10.0 { format!("{figure:.1}") } else { format!("{figure:.0}") };
            let (left, y) = (MARGIN - 4.0, y(figure));
            let _ = write!(svg, "<text x=\"{left}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", y + 4.0);
            let _ = write!(svg, "<path d=\"M{MARGIN} {y:.1}H{right}\" stroke=\"#ddd\"/>");
        }
        for decade in 0..=decades.round() as i32 {
            let size = low * 10_f64.powi(decade);
            let (x, y) = (x(size), bottom + 16.0);
            let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"middle\">{size:.0}</text>");
        }
        for (at, series) in self.series.iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let line: Vec<_> =
                series.points.iter().map(|(size, figure)| format!("{:.1},{:.1}", x(*size), y(*figure))).collect();
            let _ = write!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>", line.join(" "));
            for (size, figure) in &series.points {
                let _ =
                    write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>", x(*size), y(*figure));
            }
            let (left, row) = (MARGIN + 8.0, 44.0 + 14.0 * at as f64);
            let _ = write!(svg, "<text x=\"{left}\" y=\"{row}\" fill=\"{color}\">{}</text>", series.name);
        }
        svg
    }
}
