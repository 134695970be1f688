//! Replaces a generated block of a chapter of the guide, and formats what is in it.

use std::{fs, path::Path};

/// Replaces the lines between `<!-- NAME: generated -->` and `<!-- NAME: end -->` in a chapter of the guide.
pub fn replace(chapter: &str, name: &str, block: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide").join(chapter);
    let text = fs::read_to_string(&file).expect("the chapter");
    fs::write(&file, replaced(&text, name, block)).expect("a chapter that can be written");
    println!("wrote the block `{name}` of {}", file.display());
}

fn replaced(text: &str, name: &str, block: &str) -> String {
    let (begin, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
    let (before, after) = text.split_once(&begin).unwrap_or_else(|| panic!("the chapter has no line {begin}"));
    let (_, after) = after.split_once(&end).unwrap_or_else(|| panic!("the chapter has no line {end}"));
    format!("{before}{begin}\n{}\n\n{end}{after}", block.trim())
}

/// States date and machine.
pub fn date_and_machine() -> String {
    let today = time::OffsetDateTime::now_utc().date();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = model.trim_start_matches(['\t', ' ', ':']);
    format!("{today}, {cores} cores ({model})")
}

/// Formats a figure with about three significant digits.
pub fn short(figure: f64) -> String {
    match figure {
        ..10.0 => format!("{figure:.2}"),
        ..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// Checks the replacement and the format.
pub fn check() {
    assert_eq!(short(12.345), "12.3");
    let text = "a\n<!-- x: generated -->\n\nold\n\n<!-- x: end -->\nb\n";
    assert_eq!(replaced(text, "x", "new\n"), text.replace("old", "new"));
}
