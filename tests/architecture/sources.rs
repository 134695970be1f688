//! Source files and their modules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::lexer;

/// A source file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path from the project's root, with slashes.
    pub path: String,
    pub text: String,
    /// Number of lines.
    pub lines: usize,
    /// Code with comments and literals blanked out. Line numbers are those of the file.
    pub code: String,
    /// The same without items under `#[cfg(test)]`.
    pub shipped: String,
}

impl Source {
    /// Creates a source from its path and text.
    pub fn new(path: &str, text: &str) -> Self {
        let code = lexer::blank(text);
        let shipped = lexer::without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), lines: text.lines().count(), code, shipped }
    }

    /// Returns the module path from the crate's root. Empty for the root and for files of a binary.
    pub fn module(&self) -> Vec<&str> {
        let Some(path) = self.path.strip_prefix("src/").filter(|path| !path.starts_with("bin/")) else { return vec![] };
        let mut names: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        if matches!(names.last(), Some(&"mod" | &"lib")) {
            names.pop();
        }
        names
    }

    /// Tests, by its path, whether it is compiled for tests only.
    pub fn is_test(&self) -> bool {
        !self.path.starts_with("src/") || self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs"))
    }
}

/// Reads all files under `root/directory` whose names end with `extension`, sorted by path. A missing directory has
/// none.
pub fn read(root: &Path, directory: &str, extension: &str) -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root.join(directory), extension, &mut files);
    files.sort();
    let source = |file: &PathBuf| {
        let path = file.strip_prefix(root).expect("a file of the project").to_string_lossy().replace('\\', "/");
        Source::new(&path, &fs::read_to_string(file).expect("a readable file"))
    };
    files.iter().map(source).collect()
}

fn collect(directory: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() && !path.ends_with("node_modules") {
            collect(&path, extension, files);
        } else if path.extension().is_some_and(|own| own == extension) {
            files.push(path);
        }
    }
}
