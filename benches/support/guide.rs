//! Replaces a generated block of a chapter of the guide.

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

/// Checks the replacement.
pub fn check() {
    let text = "a\n<!-- x: generated -->\n\nold\n\n<!-- x: end -->\nb\n";
    assert_eq!(replaced(text, "x", "new\n"), text.replace("old", "new"));
}
