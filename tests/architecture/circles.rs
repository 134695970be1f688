//! Import graph of the files, and its circles.
//!
//! An import counts for the file that defines the item, not for modules that re-export it. A re-export is an import
//! only if its own file uses the name.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    lexer::{Leaf, use_leaves, without_declarations, words},
    sources::Source,
};

/// Re-exports followed for one name. A longer chain counts as an import of the module where it stops.
const REEXPORTS_MAX: usize = 8;

type Module = Vec<String>;

/// Modules of the crate, and the names that `use` brings into each.
struct Crate<'a> {
    files: BTreeMap<Module, &'a Source>,
    imported: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

impl<'a> Crate<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let shipped = sources.iter().filter(|source| !source.is_test() && !source.path.starts_with("src/bin/"));
        let files: BTreeMap<Module, &Source> =
            shipped.map(|source| (source.module().into_iter().map(str::to_owned).collect(), source)).collect();
        let mut all = Self { files, imported: BTreeMap::new() };
        for (module, source) in &all.files {
            let leaves = use_leaves(&source.shipped);
            let named = leaves.iter().filter_map(|leaf| Some((leaf.name.clone()?, all.local(module, &leaf.path)?)));
            all.imported.insert(module.clone(), named.collect());
        }
        all
    }

    /// Resolves a path that begins with `crate`, `self`, `super` or a child module.
    fn local(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let (base, rest) = match path.first()?.as_str() {
            "crate" => (&module[..0], &path[1..]),
            "self" => (module, &path[1..]),
            "super" => (module.get(..module.len().checked_sub(ups)?)?, &path[ups..]),
            child => {
                let mut below = module.to_vec();
                below.push(child.to_owned());
                self.files.contains_key(&below).then_some((module, path))?
            }
        };
        Some(base.iter().chain(rest).cloned().collect())
    }

    /// Returns the module of the file that defines the item at `path`.
    fn definition(&self, mut path: Vec<String>) -> Module {
        for _ in 0..REEXPORTS_MAX {
            let depth = (0..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth])).unwrap_or(0);
            let source = path.get(depth).and_then(|name| self.imported.get(&path[..depth])?.get(name));
            match source {
                Some(source) => path = source.iter().chain(&path[depth + 1..]).cloned().collect(),
                None => return path[..depth].to_vec(),
            }
        }
        path
    }

    /// Returns the modules that a module's file imports.
    fn imports(&self, module: &Module) -> BTreeSet<Module> {
        let code = &self.files[module].shipped;
        let body = without_declarations(code);
        let is_used = |leaf: &Leaf| leaf.name.as_ref().is_some_and(|name| words(&body, name).next().is_some());
        let leaves = use_leaves(code).into_iter().filter(|leaf| !leaf.is_public || is_used(leaf));
        let mut paths: Vec<Vec<String>> = leaves.map(|leaf| leaf.path).collect();
        let depth = module.len();
        let children = self.files.keys().filter(|other| other.len() == depth + 1 && other.starts_with(module));
        let roots = ["crate", "super", "self"].into_iter().chain(children.map(|child| child[depth].as_str()));
        for root in roots {
            let begins = words(&body, root).filter(|at| !body[..*at].ends_with("(in ") && !body[..*at].ends_with("::"));
            let found = begins.map(|at| path_at(&body[at..]));
            // A root without a name is no path, as in `pub(super)`.
            paths.extend(found.filter(|path| path.last().is_some_and(|last| last != root)));
        }
        let resolved = paths.iter().filter_map(|path| self.local(module, path));
        resolved.map(|path| self.definition(path)).filter(|other| other != module && !other.is_empty()).collect()
    }
}

/// Returns the path at the start of `code`.
fn path_at(code: &str) -> Vec<String> {
    let end = code.find(|each: char| !each.is_alphanumeric() && !matches!(each, '_' | ':')).unwrap_or(code.len());
    code[..end].split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Returns groups of modules that import each other, as `a::b`. Groups and their members are sorted.
pub fn circles(sources: &[Source]) -> Vec<Vec<String>> {
    let all = Crate::new(sources);
    let graph: BTreeMap<&Module, BTreeSet<Module>> =
        all.files.keys().map(|module| (module, all.imports(module))).collect();
    let reachable = |from: &Module| {
        let (mut seen, mut queue) = (BTreeSet::new(), vec![from]);
        while let Some(module) = queue.pop() {
            queue.extend(graph.get(module).into_iter().flatten().filter(|next| seen.insert((*next).clone())));
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> =
        graph.keys().map(|module| (*module, reachable(module))).collect();
    let mut groups = BTreeSet::new();
    for (module, own) in reached.iter().filter(|(module, own)| own.contains(**module)) {
        let group = own.iter().filter(|other| reached.get(other).is_some_and(|back| back.contains(*module)));
        groups.insert(group.map(|module| module.join("::")).collect::<Vec<_>>());
    }
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        circles(&sources)
    }

    #[test]
    fn circles_with_two_files_that_import_each_other_returns_them() {
        let files = [
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "fn f() { crate::a::g() }"),
            ("src/c.rs", "use crate::a::A;"),
        ];
        assert_eq!(found(&files), [["a", "b"]]);
    }

    #[test]
    fn circles_with_an_import_through_a_reexport_counts_the_definition() {
        let parent = ("src/a/mod.rs", "mod b; mod c; pub use b::B; pub use self::c::{C as D};");
        assert_eq!(found(&[parent, ("src/a/b.rs", "use super::D;"), ("src/a/c.rs", "")]), [[""; 0]; 0]);
        assert_eq!(
            found(&[parent, ("src/a/b.rs", "use super::D;"), ("src/a/c.rs", "use super::B;")]),
            [["a::b", "a::c"]]
        );
        let parent = ("src/a/mod.rs", "mod b; pub use b::B; struct E(B);");
        assert_eq!(found(&[parent, ("src/a/b.rs", "use super::E;")]), [["a", "a::b"]]);
        let parent = ("src/a/mod.rs", "mod b; pub use b::B; struct E; fn f() { b::g() }");
        assert_eq!(found(&[parent, ("src/a/b.rs", "use super::E;")]), [["a", "a::b"]]);
        let parent = ("src/a/mod.rs", "mod b; pub use b::B; pub(super) struct E;");
        assert_eq!(found(&[parent, ("src/a/b.rs", "pub(super) use super::E; fn f(_: E) {}")]), [[""; 0]; 0]);
    }

    #[test]
    fn circles_through_tests_are_not_counted() {
        let files = [("src/a.rs", "use crate::b::B;"), ("src/b.rs", "#[cfg(test)] mod tests { use crate::a::A; }")];
        assert_eq!(found(&files), [[""; 0]; 0]);
    }
}
