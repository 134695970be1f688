//! Draws horizontal bar charts as SVG: one panel for each figure, one bar for each contestant.

use std::fmt::Write;

use super::guide;

/// Width of a panel, heights of its title and of a bar, and the space for names and figures.
const WIDTH: f64 = 400.0;
const TITLE_HEIGHT: f64 = 34.0;
const BAR_HEIGHT: f64 = 20.0;
const NAMES_WIDTH: f64 = 100.0;
const FIGURES_WIDTH: f64 = 60.0;

/// Color of the first bar, and of the others.
const FIRST_COLOR: &str = "#1b6ca8";
const OTHER_COLOR: &str = "#adb5bd";

/// A panel: a figure of each contestant. Less is better.
pub struct Panel<'a> {
    /// The figure with its unit.
    pub title: &'a str,
    pub bars: Vec<(&'a str, f64)>,
}

/// Draws panels side by side, two in a row.
pub fn draw(panels: &[Panel<'_>]) -> String {
    let bars = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    let height = TITLE_HEIGHT + bars as f64 * BAR_HEIGHT + 12.0;
    let (width, all) = (2.0 * WIDTH, panels.len().div_ceil(2) as f64 * height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {all}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{all}\" fill=\"#fff\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = ((at % 2) as f64 * WIDTH, (at / 2) as f64 * height);
        // Writing to a String cannot fail.
        _ = writeln!(svg, "<g transform=\"translate({x} {y})\">{}</g>", panel.draw());
    }
    svg + "</svg>\n"
}

impl Panel<'_> {
    fn draw(&self) -> String {
        let most = self.bars.iter().fold(f64::MIN_POSITIVE, |most, (_, figure)| most.max(*figure));
        let mut svg = format!("<text x=\"12\" y=\"22\" font-weight=\"bold\">{}</text>", self.title);
        for (at, (name, figure)) in self.bars.iter().enumerate() {
            let y = TITLE_HEIGHT + at as f64 * BAR_HEIGHT;
            let length = (figure / most).max(0.0) * (WIDTH - NAMES_WIDTH - FIGURES_WIDTH);
            let color = if at == 0 { FIRST_COLOR } else { OTHER_COLOR };
            _ = write!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>\
                 <rect x=\"{NAMES_WIDTH}\" y=\"{y}\" width=\"{length:.1}\" height=\"{:.0}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                NAMES_WIDTH - 8.0,
                y + 13.0,
                BAR_HEIGHT - 4.0,
                NAMES_WIDTH + length + 6.0,
                y + 13.0,
                guide::short(*figure)
            );
        }
        svg
    }
}

/// Checks the lengths of bars.
pub fn check() {
    let svg = draw(&[Panel { title: "µs", bars: vec![("one", 1.0), ("two", 2.0)] }]);
    assert!(svg.contains("width=\"120.0\"") && svg.contains("width=\"240.0\""), "{svg}");
}
