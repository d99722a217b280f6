//! Rules text: one command on a line, as `-S` writes it and `-R` reads it.

use super::{GrammarError, parse};
use crate::control::command::Command;
use crate::control::marks;
use crate::control::names::Names;

/// The longest line of rules, in bytes. The longest that `-S` writes has a few hundred.
pub const MAX_RULE_LENGTH: usize = 4096;

/// One line of rules that is not blank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Its text, without blanks around it.
    pub text: &'a str,
    /// What it says.
    pub command: Result<Command, GrammarError>,
}

/// Reads rules: words are split at blanks, quotes mean nothing, `ipvsadm` may come first, blank lines and lines that
/// start with `#` are skipped. After `mark` or `uvs mark` come the words of `iptables`.
pub fn rules<'a>(text: &'a str, names: &'a dyn Names) -> impl Iterator<Item = Rule<'a>> {
    text.lines().enumerate().filter_map(move |(index, line)| {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            return None;
        }
        if text.len() > MAX_RULE_LENGTH {
            return Some(Rule { number: index + 1, text: "", command: Err(GrammarError::LineTooLong) });
        }
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == "ipvsadm") {
            words.remove(0);
        }
        if words.is_empty() {
            return None;
        }
        // What `uvs mark` takes; a line may be a script's as it stands.
        let of_marks = match &words[..] {
            [first, second, rest @ ..] if first == "uvs" && second == "mark" => Some(rest),
            [first, rest @ ..] if first == "mark" => Some(rest),
            _ => None,
        };
        if let Some(words) = of_marks {
            let command = marks::parse(words, names).map(Command::Mark).map_err(GrammarError::from);
            return Some(Rule { number: index + 1, text, command });
        }
        let command = match parse(&words, names) {
            // A line is named with its text anyway.
            Err(GrammarError::NoOption(_)) | Ok(Command::Restore) => Err(GrammarError::NoCommand),
            command => command,
        };
        Some(Rule { number: index + 1, text, command })
    })
}
