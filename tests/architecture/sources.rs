//! The files, and where each stands in the crate.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::lexer;

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the root of the project, with slashes.
    pub path: String,
    /// Its lines.
    pub lines: usize,
    /// Its code, with comments and the contents of strings blanked out; line by line as in the file.
    pub code: String,
    /// The same without what is compiled for its own tests only.
    pub shipped: String,
}

impl Source {
    /// From its path and its text.
    pub fn new(path: &str, text: &str) -> Self {
        let code = lexer::blank(text);
        let shipped = lexer::without_tests(&code);
        Self { path: path.to_owned(), lines: text.lines().count(), code, shipped }
    }

    /// The names of the modules from the crate's root down to this one; none for the root, and for a binary's files.
    pub fn module(&self) -> Vec<&str> {
        let Some(path) = self.path.strip_prefix("src/").filter(|path| !path.starts_with("bin/")) else { return vec![] };
        let mut names: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        if matches!(names.last(), Some(&"mod" | &"lib")) {
            names.pop();
        }
        names
    }

    /// Whether it is compiled for tests only, as its place says.
    pub fn is_test(&self) -> bool {
        !self.path.starts_with("src/") || self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs"))
    }
}

/// All Rust files under `root/directory`, in order; none where there is no such directory.
pub fn read(root: &Path, directory: &str) -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root.join(directory), &mut files);
    files.sort();
    let source = |file: &PathBuf| {
        let path = file.strip_prefix(root).expect("a file of the project").to_string_lossy().replace('\\', "/");
        Source::new(&path, &fs::read_to_string(file).expect("a readable file"))
    };
    files.iter().map(source).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() && !path.ends_with("node_modules") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
