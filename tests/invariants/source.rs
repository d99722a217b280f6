//! What the source may and may not say: where `unsafe` stands, who imports whom, who asks the system for anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module uses its own layer and those before it.
const LAYERS: &[&[&str]] = &[
    &["sys"],
    &["types"],
    &["wire"],
    &["service", "scheduler", "conn", "persistence", "forward", "fragment", "health", "sync"],
    &["director"],
    &["control"],
    &["io", "net"],
    &["worker", "daemon", "lab", "replay"],
];
/// The last layer that neither reads a clock nor opens, spawns or prints anything.
const LAST_PURE_LAYER: &str = "director";
/// Most lines of a file before its tests.
const MAX_LINES: usize = 500;

/// One file's source.
struct File {
    /// Relative to the package.
    path: PathBuf,
    text: String,
    /// The text with comments, strings and characters blanked out, and lines as they were.
    code: String,
}

impl File {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(package().join(&path)).unwrap();
        let code = blank_out(&text);
        Self { path, text, code }
    }

    /// The module path: `src/io/steering/mod.rs` is `io`, `steering`.
    fn modules(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .path
            .with_extension("")
            .iter()
            .skip(1)
            .map(|name| name.to_str().unwrap().to_owned())
            .collect();
        names.pop_if(|name| matches!(name.as_str(), "mod" | "lib" | "main"));
        names
    }

    /// The layer's number; `None` for the crate's root.
    fn layer(&self) -> Option<usize> {
        let modules = self.modules();
        let first = modules.first()?;
        let layer = layer_of(first);
        assert!(layer.is_some(), "{}: the folder is in no layer", self.path.display());
        layer
    }

    /// The code without `#[cfg(test)]` items.
    fn code_without_tests(&self) -> String {
        let mut code = self.code.clone();
        while let Some(start) = code.find("#[cfg(test)]") {
            let end = start + item_length(&code[start..]);
            let blank: String = code[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            code.replace_range(start..end, &blank);
        }
        code
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The Rust files below a folder of the package.
fn files(folder: &str) -> Vec<File> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(package().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.into_iter().map(File::read).collect()
}

/// The files of src/ that are compiled into the library or the program, not only into their tests.
fn shipped_files() -> Vec<File> {
    let files = files("src");
    let mut tests = BTreeSet::new();
    for file in &files {
        for (start, _) in file.code.match_indices("#[cfg(test)]") {
            let item = &file.code[start..][..item_length(&file.code[start..])];
            let words: Vec<&str> = item
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .filter(|word| !word.is_empty())
                .collect();
            if let Some(name) = words.iter().skip_while(|word| **word != "mod").nth(1)
                && item.ends_with(';')
            {
                tests.insert([file.modules(), vec![(*name).to_owned()]].concat());
            }
        }
    }
    files.into_iter().filter(|file| !tests.iter().any(|test| file.modules().starts_with(test))).collect()
}

/// How long the item is that follows an attribute: up to its semicolon, or to the end of its braces.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth = depth.saturating_sub(1),
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Replaces comments, strings and characters by blanks; lines stay where they are.
fn blank_out(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = hidden_length(rest, code.chars().next_back());
        let taken = if hidden == 0 { first.len_utf8() } else { hidden };
        for character in rest[..taken].chars() {
            code.push(if hidden == 0 || character == '\n' { character } else { ' ' });
        }
        rest = &rest[taken..];
    }
    code
}

/// Bytes of the comment or literal that `rest` begins with, 0 where it begins with neither.
fn hidden_length(rest: &str, before: Option<char>) -> usize {
    let in_a_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    let unprefixed = if in_a_word { rest } else { rest.trim_start_matches(['b', 'c']) };
    let prefix = rest.len() - unprefixed.len();
    if prefix <= 1 {
        if unprefixed.starts_with('"') {
            return prefix + quoted_length(unprefixed, '"');
        }
        if !in_a_word && let Some(raw) = unprefixed.strip_prefix('r') {
            let fences = raw.len() - raw.trim_start_matches('#').len();
            if raw[fences..].starts_with('"') {
                let end = format!("\"{}", "#".repeat(fences));
                let body = &raw[fences + 1..];
                let length = body.find(&end).map_or(body.len(), |at| at + end.len());
                return prefix + 1 + fences + 1 + length;
            }
        }
        if unprefixed.starts_with('\'') {
            let mut characters = unprefixed.chars().skip(1);
            let is_character = match (characters.next(), characters.next()) {
                (Some('\\'), _) => true,
                (Some(_), Some('\'')) => true,
                _ => false, // a lifetime
            };
            return if is_character { prefix + quoted_length(unprefixed, '\'') } else { 0 };
        }
    }
    0
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        match here {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// Identifiers, `::`, and single other characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// All paths in the code, use trees written out: `use std::{fs, io::{self, Read}}` is `std::fs`, `std::io` and
/// `std::io::Read`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = is_word(tokens[at]) && tokens.get(at + 1) == Some(&"::");
        if starts && (at == 0 || tokens[at - 1] != "::") {
            at = tree(&tokens, at, &[], &mut found);
        } else {
            // `use tracing;` and the like.
            if at > 0 && tokens[at - 1] == "use" && is_word(tokens[at]) {
                found.push(vec![tokens[at].to_owned()]);
            }
            at += 1;
        }
    }
    found
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one path or use tree from `at`, whose beginning is `prefix`; says where it ends.
fn tree(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match *token {
            "self" if !path.is_empty() => {}
            "{" if tokens.get(at.wrapping_sub(1)) == Some(&"::") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = match tokens[at] {
                        "as" => at + 2,
                        token if is_word(token) => tree(tokens, at, &path, found),
                        _ => at + 1,
                    };
                }
                return at + 1;
            }
            word if is_word(word) => path.push(word.to_owned()),
            _ => break,
        }
        at += 1;
        match tokens.get(at) {
            Some(&"::") => at += 1,
            _ => break,
        }
    }
    found.push(path);
    at
}

fn line_of(code: &str, needle: &str) -> usize {
    code.find(needle).map_or(0, |at| code[..at].matches('\n').count() + 1)
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn unsafe_stands_below_sys_only() {
    let mut complaints = Vec::new();
    let mut below_sys = 0;
    for file in ["src", "tests", "benches"].into_iter().flat_map(files) {
        let says_it = tokens(&file.code).iter().any(|token| matches!(*token, "unsafe" | "unsafe_code"));
        if file.path.starts_with("src/sys") {
            below_sys += usize::from(says_it);
        } else if says_it {
            let line = line_of(&file.code, "unsafe");
            complaints.push(format!("{}:{line}: unsafe outside src/sys", file.path.display()));
        }
    }
    assert!(below_sys > 5, "the reader of source files finds no unsafe in src/sys");
    assert_none(&complaints);
}

#[test]
fn unsafe_blocks_say_why_they_are_sound() {
    let mut complaints = Vec::new();
    for file in files("src/sys") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, code) in file.code.lines().enumerate() {
            let words = tokens(code);
            let Some(at) = words.iter().position(|word| *word == "unsafe") else { continue };
            // What unsafe functions and traits rely on stands in their documentation.
            if matches!(words[at + 1..].first(), Some(&("fn" | "extern" | "trait"))) {
                continue;
            }
            // Above the statement, which may have begun some lines ago.
            let above = &lines[number.saturating_sub(12)..=number];
            if !above.iter().any(|line| line.contains("SAFETY:")) {
                complaints.push(format!("{}:{}: no SAFETY comment", file.path.display(), number + 1));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn lower_layers_never_import_higher_ones() {
    let mut complaints = Vec::new();
    let mut checked = 0;
    for file in files("src") {
        let Some(layer) = file.layer() else { continue };
        let depth = file.modules().len();
        for path in paths(&file.code) {
            let supers = path.iter().take_while(|word| *word == "super").count();
            let module = match path[0].as_str() {
                "crate" => path.get(1),
                // Out of the file's own layer only by climbing past its top; a module inside the file may have
                // to climb further, so this may look at too many, not at too few.
                "super" if supers >= depth => path.get(supers).filter(|name| layer_of(name).is_some()),
                "uvs" => path.get(1),
                _ => continue,
            };
            let Some(module) = module else { continue };
            checked += 1;
            match layer_of(module) {
                Some(used) if used <= layer => {}
                Some(_) => complaints.push(format!(
                    "{}: {} is of a higher layer",
                    file.path.display(),
                    path.join("::")
                )),
                None => {
                    complaints.push(format!("{}: {} is in no layer", file.path.display(), path.join("::")))
                }
            }
        }
    }
    assert!(checked > 100, "the reader of source files finds {checked} paths");
    assert_none(&complaints);
}

/// Why the path must not be used up to the director, where it must not.
fn forbidden(path: &[String]) -> Option<&'static str> {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["std", "time", "Instant" | "SystemTime", ..] | ["std", "time"] => Some("reads a clock"),
        ["std", "fs" | "process" | "env" | "os", ..] => Some("asks the system"),
        ["std", "thread", "spawn" | "scope" | "sleep" | "Builder" | "park" | "park_timeout", ..]
        | ["std", "thread"] => Some("spawns or blocks"),
        ["std", "net", "TcpStream" | "TcpListener" | "UdpSocket" | "ToSocketAddrs", ..] | ["std", "net"] => {
            Some("opens sockets")
        }
        ["std", "io", "stdin" | "stdout" | "stderr", ..] => Some("talks to the terminal"),
        ["std", "sync", "mpsc" | "Condvar" | "Barrier", ..] | ["crossbeam_channel", ..] => Some("blocks"),
        ["tracing", ..] => Some("logs"),
        ["rustix" | "libc", ..] => Some("asks the system"),
        _ => None,
    }
}

#[test]
fn nothing_up_to_the_director_asks_the_system_for_anything() {
    let last = layer_of(LAST_PURE_LAYER).unwrap();
    let mut complaints = Vec::new();
    let mut seen = 0;
    for file in shipped_files() {
        let Some(layer) = file.layer().filter(|layer| *layer <= last) else { continue };
        seen += 1;
        let code = file.code_without_tests();
        let below_sys = layer == 0;
        for path in paths(&code) {
            // System calls are what sys is for; it says nothing to anybody nonetheless.
            let why = forbidden(&path).filter(|why| !below_sys || *why == "logs");
            if let Some(why) = why {
                complaints.push(format!("{}: {} {why}", file.path.display(), path.join("::")));
            }
        }
        for macro_name in ["println", "eprintln", "print", "eprint", "dbg"] {
            if tokens(&code).windows(2).any(|pair| pair == [macro_name, "!"]) {
                complaints.push(format!("{}: {macro_name}!", file.path.display()));
            }
        }
    }
    assert!(seen > 30, "the reader of source files finds {seen} files");
    assert_none(&complaints);
}

#[test]
fn files_are_short_before_their_tests() {
    let mut complaints = Vec::new();
    for file in shipped_files() {
        let tests = line_of(&file.code, "#[cfg(test)]\nmod");
        let lines = if tests == 0 { file.text.lines().count() } else { tests };
        if lines >= MAX_LINES {
            complaints.push(format!("{}: {lines} lines", file.path.display()));
        }
    }
    assert_none(&complaints);
}

mod reader {
    //! That the reader itself sees what it should.

    use super::*;

    fn all(code: &str) -> Vec<String> {
        paths(&blank_out(code)).into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "a // std::fs\n/* std::fs /* */ std::fs */ b \"std::fs \\\" std::fs\" 'c' '\\'' r#\"std::\"fs\"# &'x d b\"\\\"e\"";
        let code = blank_out(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(tokens(&code), ["a", "b", "&", "'", "x", "d"]);
    }

    #[test]
    fn use_trees_are_written_out() {
        assert_eq!(
            all(
                "use std::{fs, io::{self, Read as R}, time::Instant};\nlet x = crate::io::y(super::super::z);"
            ),
            ["std::fs", "std::io", "std::io::Read", "std::time::Instant", "crate::io::y", "super::super::z"]
        );
        assert_eq!(all("use tracing;"), ["tracing"]);
    }

    #[test]
    fn what_is_forbidden_is_found() {
        for code in [
            "use std::time::{Duration, Instant};",
            "std::fs::read(p)",
            "tracing::info!(x)",
            "use std::thread;",
        ] {
            assert!(paths(code).iter().any(|path| forbidden(path).is_some()), "{code}");
        }
        assert!(!paths("use std::net::IpAddr; use std::io;").iter().any(|path| forbidden(path).is_some()));
    }

    #[test]
    fn test_items_are_left_out() {
        let file = File {
            path: "src/wire/x.rs".into(),
            text: String::new(),
            code: "a #[cfg(test)] mod tests { b { } } c #[cfg(test)]\nmod more; d".to_owned(),
        };
        let code = file.code_without_tests();
        assert_eq!(tokens(&code), ["a", "c", "d"]);
    }
}
