//! Minimal lexer for Rust: separates code from comments, literals and tests, and reads `use` declarations.

/// Replaces comments, string literals and character literals by spaces. Line breaks stay.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let Some(end) = literal_end(&chars, at) else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        out.extend(chars[at..end].iter().map(|each| if *each == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Returns all comments that begin with `//`, each with its line, counted from 1.
pub fn line_comments(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut comments, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let end = literal_end(&chars, at).unwrap_or(at + 1);
        if chars[at..end].starts_with(&['/', '/']) {
            comments.push((line, chars[at..end].iter().collect()));
        }
        line += chars[at..end].iter().filter(|each| **each == '\n').count();
        at = end;
    }
    comments
}

/// Returns the end of the comment or literal that begins at `at`; `None` for code.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = |ahead: usize| chars.get(at + ahead).copied();
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == Some('/') => Some(find(chars, at, |each| each == '\n')),
        '/' if next(1) == Some('*') => Some(comment_end(chars, at)),
        '"' => Some(quoted_end(chars, at, '"')),
        'r' | 'b' | 'c' if !in_word => raw_end(chars, at),
        // A lifetime has no second quote right after its first character.
        '\'' if next(1) == Some('\\') || next(2) == Some('\'') => Some(quoted_end(chars, at, '\'')),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, matches: impl Fn(char) -> bool) -> usize {
    chars[from..].iter().position(|each| matches(*each)).map_or(chars.len(), |ahead| from + ahead)
}

/// Finds the end of a block comment. Block comments nest.
fn comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut at = from + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Finds the end of a raw string: `r"…"`, `r#"…"#`, `br"…"`. Other prefixes are read as code before a plain string.
fn raw_end(chars: &[char], from: usize) -> Option<usize> {
    let start = find(chars, from, |each| !matches!(each, 'r' | 'b' | 'c'));
    if !chars[from..start].contains(&'r') || start - from > 2 {
        return None;
    }
    let quote = find(chars, start, |each| each != '#');
    let hashes = quote - start;
    if chars.get(quote) != Some(&'"') {
        return None;
    }
    let mut at = quote + 1;
    while at < chars.len() {
        if chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|each| **each == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(at)
}

/// Blanks out items under `#[cfg(test)]` in blanked code. Line breaks stay.
pub fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(from) = out.find("#[cfg(test)]") {
        let rest = &out[from..];
        let body = rest.find(['{', ';']).unwrap_or(rest.len());
        let length = if rest[body..].starts_with('{') { body + block_length(&rest[body..]) } else { body + 1 };
        let end = (from + length).min(out.len());
        let blank: String = out[from..end].chars().map(|each| if each == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(from..end, &blank);
    }
    out
}

/// Returns the length of the block at the start of `text`.
fn block_length(text: &str) -> usize {
    let mut depth = 0;
    for (at, each) in text.char_indices() {
        match each {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// Returns the offset of each occurrence of `word` as a whole word.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_word_char = |each: char| each.is_alphanumeric() || each == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !code[..*at].chars().next_back().is_some_and(is_word_char)
            && !code[at + word.len()..].chars().next().is_some_and(is_word_char)
    })
}

/// Returns the line of an offset, counted from 1.
pub fn line(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Returns the first names of the path at the start of `text`: `name::…` or `{name::…, other, …}`.
pub fn first_names(text: &str) -> Vec<String> {
    let text = text.trim_start();
    let Some(group) = text.strip_prefix('{') else {
        let end = text.find(|each: char| !each.is_alphanumeric() && each != '_').unwrap_or(text.len());
        return vec![text[..end].to_owned()];
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, each) in group.char_indices() {
        match each {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                names.extend(first_names(&group[start..at]).into_iter().filter(|name| !name.is_empty()));
                start = at + 1;
                if each == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

/// A name that a `use` declaration imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Full path, without a trailing `self` or `*`.
    pub path: Vec<String>,
    /// Name in the importing module; `None` for a glob or `_`.
    pub name: Option<String>,
    /// The declaration is a re-export.
    pub is_public: bool,
}

/// Returns all names that the `use` declarations of `code` import.
pub fn use_leaves(code: &str) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (from, to, is_public) in use_declarations(code) {
        collect_leaves(&code[from..to], &[], is_public, &mut leaves);
    }
    leaves
}

/// Blanks out `use` and `mod` declarations. Offsets stay.
pub fn without_declarations(code: &str) -> String {
    let mut out = code.to_owned();
    let modules = words(code, "mod").filter_map(|at| Some((at, at + code[at..].find([';', '{'])?)));
    let uses = use_declarations(code).map(|(from, to, _)| (from, to));
    for (from, to) in modules.chain(uses) {
        out.replace_range(from..to, &" ".repeat(to - from));
    }
    out
}

/// Finds the trees of all `use` declarations: start, end, and whether the declaration is public.
fn use_declarations(code: &str) -> impl Iterator<Item = (usize, usize, bool)> {
    words(code, "use").filter_map(|at| {
        let from = at + "use".len();
        let before = code[..at].trim_end();
        let is_public = before.ends_with("pub") || before.ends_with(')');
        Some((from, from + code[from..].find(';')?, is_public))
    })
}

fn collect_leaves(tree: &str, prefix: &[String], is_public: bool, leaves: &mut Vec<Leaf>) {
    let parts = |text: &str| -> Vec<String> {
        text.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    if let Some((head, group)) = tree.split_once('{') {
        let prefix: Vec<String> = prefix.iter().cloned().chain(parts(head)).collect();
        let (mut depth, mut start) = (0, 0);
        for (at, each) in group.char_indices() {
            match each {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                '}' | ',' if depth == 0 => {
                    collect_leaves(&group[start..at], &prefix, is_public, leaves);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let mut path: Vec<String> = prefix.iter().cloned().chain(parts(path)).collect();
    let is_glob = path.last().is_some_and(|last| last == "*");
    if is_glob || path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = alias.map(str::to_owned).or_else(|| path.last().cloned()).filter(|name| !is_glob && name != "_");
    if !parts(tree).is_empty() {
        leaves.push(Leaf { path, name, is_public });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_leaves_with_nested_groups_returns_each_path() {
        let leaves = use_leaves("use a::{self, b::{C, D as E}, f::*};\npub use g;\nfn f() { user; }");
        let found: Vec<_> = leaves.iter().map(|leaf| (leaf.path.join("::"), leaf.name.as_deref())).collect();
        let expected =
            [("a", Some("a")), ("a::b::C", Some("C")), ("a::b::D", Some("E")), ("a::f", None), ("g", Some("g"))];
        assert_eq!(found, expected.map(|(path, name)| (path.to_owned(), name)));
    }

    #[test]
    fn blank_with_comments_and_literals_keeps_only_code() {
        let code = blank("a // b\n/* c /* d */ e */ f \"g \\\" h\" r#\"i \" j\"# b\"k\" 'l' '\\'' m");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "f", "b", "m"]);
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn line_comments_returns_comments_outside_literals() {
        let text = "a // b\n/* c\n// d */ \"e\n// f\" //g\n'/' '\"' /// h";
        let expected = [(1, "// b"), (4, "//g"), (5, "/// h")];
        assert_eq!(line_comments(text), expected.map(|(line, comment)| (line, comment.to_owned())));
    }

    #[test]
    fn blank_with_lifetimes_and_words_returns_the_text() {
        let text = "fn f<'a>(r: &'a str, number: br) -> Barr<'a, 'static> { for b in c {} }";
        assert_eq!(blank(text), text);
    }

    #[test]
    fn without_tests_removes_items_under_cfg_test() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { {} } }\n#[cfg(test)]\nuse c;\n#[cfg(test)] mod d;\nfn e() {}";
        let shipped = without_tests(code);
        assert_eq!(shipped.split_whitespace().collect::<Vec<_>>(), ["fn", "a()", "{}", "fn", "e()", "{}"]);
        assert_eq!(shipped.matches('\n').count(), code.matches('\n').count());
    }

    #[test]
    fn first_names_with_groups_returns_the_first_of_each_path() {
        assert_eq!(first_names("a::{b, c}"), ["a"]);
        assert_eq!(first_names("{a::{b, c}, d, e as f,}"), ["a", "d", "e"]);
        assert_eq!(first_names("{\n    a::b,\n    c::d,\n}; x::y"), ["a", "c"]);
    }

    #[test]
    fn words_returns_whole_words_only() {
        assert_eq!(words("sled sledge _sled my::sled", "sled").collect::<Vec<_>>(), [0, 22]);
        assert_eq!(line("a\nb\nc", 4), 3);
    }
}
