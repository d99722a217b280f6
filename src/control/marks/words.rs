//! The words of an iptables command line: options in clusters or long, with their values, and `!` before them.

use super::MarkSyntaxError;
use crate::control::grammar::lookalike_dash;

/// Whether an option has a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// It has none.
    No,
    /// It needs one.
    Yes,
    /// The next word, if that is no option.
    Maybe,
}

/// What an option is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Id {
    Append,
    Delete,
    Check,
    Insert,
    Replace,
    List,
    ListRules,
    Flush,
    Zero,
    NewChain,
    DeleteChain,
    RenameChain,
    Policy,
    Help,
    Version,
    Table,
    Source,
    Destination,
    InInterface,
    Protocol,
    Jump,
    Match,
    Ipv4,
    Ipv6,
    Numeric,
    Verbose,
    Exact,
    LineNumbers,
    Wait,
    WaitInterval,
    SourcePort,
    DestinationPort,
    SourcePorts,
    DestinationPorts,
    Ports,
    SetMark,
    SetXmark,
    OrMark,
    AndMark,
    XorMark,
    /// Of iptables, but not for marks.
    Foreign,
}

/// An option: its letter, its long names (the first of which messages use), and whether it has a value.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) id: Id,
    pub(super) letter: Option<char>,
    pub(super) names: &'static [&'static str],
    pub(super) value: Value,
}

const fn word(id: Id, letter: char, names: &'static [&'static str], value: Value) -> Word {
    Word { id, letter: Some(letter), names, value }
}

const fn long(id: Id, names: &'static [&'static str], value: Value) -> Word {
    Word { id, letter: None, names, value }
}

const WORDS: &[Word] = &[
    word(Id::Append, 'A', &["append"], Value::Yes),
    word(Id::Delete, 'D', &["delete"], Value::Yes),
    word(Id::Check, 'C', &["check"], Value::Yes),
    word(Id::Insert, 'I', &["insert"], Value::Yes),
    word(Id::Replace, 'R', &["replace"], Value::Yes),
    word(Id::List, 'L', &["list"], Value::Maybe),
    word(Id::ListRules, 'S', &["list-rules"], Value::Maybe),
    word(Id::Flush, 'F', &["flush"], Value::Maybe),
    word(Id::Zero, 'Z', &["zero"], Value::Maybe),
    word(Id::NewChain, 'N', &["new-chain"], Value::Yes),
    word(Id::DeleteChain, 'X', &["delete-chain"], Value::Maybe),
    word(Id::RenameChain, 'E', &["rename-chain"], Value::Yes),
    word(Id::Policy, 'P', &["policy"], Value::Yes),
    word(Id::Help, 'h', &["help"], Value::No),
    word(Id::Version, 'V', &["version"], Value::No),
    word(Id::Table, 't', &["table"], Value::Yes),
    word(Id::Source, 's', &["source", "src"], Value::Yes),
    word(Id::Destination, 'd', &["destination", "dst"], Value::Yes),
    word(Id::InInterface, 'i', &["in-interface"], Value::Yes),
    word(Id::Protocol, 'p', &["protocol", "proto"], Value::Yes),
    word(Id::Jump, 'j', &["jump"], Value::Yes),
    word(Id::Match, 'm', &["match"], Value::Yes),
    word(Id::Ipv4, '4', &["ipv4"], Value::No),
    word(Id::Ipv6, '6', &["ipv6"], Value::No),
    word(Id::Numeric, 'n', &["numeric"], Value::No),
    word(Id::Verbose, 'v', &["verbose"], Value::No),
    word(Id::Exact, 'x', &["exact"], Value::No),
    long(Id::LineNumbers, &["line-numbers"], Value::No),
    word(Id::Wait, 'w', &["wait"], Value::Maybe),
    word(Id::WaitInterval, 'W', &["wait-interval"], Value::Yes),
    long(Id::SourcePort, &["source-port", "sport"], Value::Yes),
    long(Id::DestinationPort, &["destination-port", "dport"], Value::Yes),
    long(Id::SourcePorts, &["source-ports", "sports"], Value::Yes),
    long(Id::DestinationPorts, &["destination-ports", "dports"], Value::Yes),
    long(Id::Ports, &["ports", "port"], Value::Yes),
    long(Id::SetMark, &["set-mark"], Value::Yes),
    long(Id::SetXmark, &["set-xmark"], Value::Yes),
    long(Id::OrMark, &["or-mark"], Value::Yes),
    long(Id::AndMark, &["and-mark"], Value::Yes),
    long(Id::XorMark, &["xor-mark"], Value::Yes),
    word(Id::Foreign, 'o', &["out-interface"], Value::Yes),
    word(Id::Foreign, 'g', &["goto"], Value::Yes),
    word(Id::Foreign, 'f', &["fragment"], Value::No),
    word(Id::Foreign, 'c', &["set-counters"], Value::Yes),
    word(Id::Foreign, 'M', &["modprobe"], Value::Yes),
    long(Id::Foreign, &["syn"], Value::No),
    long(Id::Foreign, &["tcp-flags"], Value::Yes),
    long(Id::Foreign, &["tcp-option"], Value::Yes),
    long(Id::Foreign, &["chunk-types"], Value::Yes),
];

/// An option as it was given.
#[derive(Debug)]
pub(super) struct Given<'a> {
    pub(super) word: &'static Word,
    /// As it was written.
    pub(super) written: String,
    pub(super) value: Option<&'a str>,
    /// `!` came before it.
    pub(super) inverted: bool,
}

/// Reads a command line option by option.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    words: &'a [String],
    at: usize,
    /// Letters that are left of a cluster.
    cluster: &'a str,
}

type Result<T> = std::result::Result<T, MarkSyntaxError>;

impl<'a> Reader<'a> {
    pub(super) fn new(words: &'a [String]) -> Self {
        Self { words, at: 0, cluster: "" }
    }

    /// The next word, if that is no option.
    pub(super) fn plain(&mut self) -> Option<&'a str> {
        if !self.cluster.is_empty() {
            return None;
        }
        let word = self.words.get(self.at).filter(|word| !word.starts_with('-') && *word != "!")?;
        self.at += 1;
        Some(word)
    }

    /// The next option; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Given<'a>>> {
        let mut inverted = false;
        loop {
            if !self.cluster.is_empty() {
                return self.letter(inverted).map(Some);
            }
            let Some(word) = self.words.get(self.at) else {
                return if inverted { fail("nothing appropriate following !") } else { Ok(None) };
            };
            self.at += 1;
            if word == "!" {
                if std::mem::replace(&mut inverted, true) {
                    return fail("multiple consecutive ! not allowed");
                }
            } else if let Some(name) = word.strip_prefix("--").filter(|name| !name.is_empty()) {
                return self.long(name, inverted).map(Some);
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                self.check_hyphens(word, letters)?;
                self.cluster = letters;
            } else {
                return Err(bad_argument(word));
            }
        }
    }

    /// `-dport` would be `-d port`, and the mistake come to light far from where it is.
    fn check_hyphens(&self, word: &str, letters: &str) -> Result<()> {
        let name = letters.split('=').next().unwrap_or_default();
        if name.len() > 1 && WORDS.iter().any(|word| word.names.contains(&name)) {
            return fail(format!("unknown option \"{word}\" (write it with two hyphens: -{word})"));
        }
        Ok(())
    }

    fn letter(&mut self, inverted: bool) -> Result<Given<'a>> {
        let mut letters = self.cluster.chars();
        let letter = letters.next().unwrap_or_default();
        let rest = letters.as_str();
        let written = format!("-{letter}");
        let Some(word) = WORDS.iter().find(|word| word.letter == Some(letter)) else {
            return fail(format!("unknown option \"{written}\""));
        };
        self.cluster = rest;
        let value = match word.value {
            Value::No => None,
            _ if !rest.is_empty() => {
                self.cluster = "";
                Some(rest)
            }
            Value::Maybe => self.plain(),
            Value::Yes => Some(self.required(&written)?),
        };
        Ok(Given { word, written, value, inverted })
    }

    fn long(&mut self, text: &'a str, inverted: bool) -> Result<Given<'a>> {
        let (name, glued) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let written = format!("--{name}");
        let word = find(name).ok_or_else(|| MarkSyntaxError(format!("unknown option \"{written}\"")))?;
        let value = match (word.value, glued) {
            (Value::No, Some(_)) => return fail(format!("option \"{written}\" takes no argument")),
            (Value::No, None) => None,
            (_, Some(value)) => Some(value),
            (Value::Maybe, None) => self.plain(),
            (Value::Yes, None) => Some(self.required(&written)?),
        };
        Ok(Given { word, written, value, inverted })
    }

    fn required(&mut self, written: &str) -> Result<&'a str> {
        let value = self.words.get(self.at);
        self.at += 1;
        match value.map(String::as_str) {
            // As iptables had it long ago.
            Some("!") => fail(format!("the ! goes before {written}")),
            Some(value) => Ok(value),
            None => fail(format!("option \"{written}\" requires an argument")),
        }
    }
}

/// The option with this long name, or the only one whose name begins so.
fn find(name: &str) -> Option<&'static Word> {
    if let Some(word) = WORDS.iter().find(|word| word.names.contains(&name)) {
        return Some(word);
    }
    let mut beginning = WORDS.iter().filter(|word| word.names.iter().any(|known| known.starts_with(name)));
    beginning.next().filter(|_| beginning.next().is_none())
}

/// A word that is no option and no option's value.
fn bad_argument(word: &str) -> MarkSyntaxError {
    let hint = lookalike_dash(word)
        .map(|(dash, meant)| format!(" (it starts with '{dash}', not with a hyphen: write {meant})"));
    MarkSyntaxError(format!("Bad argument `{word}'{}", hint.unwrap_or_default()))
}

pub(super) fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(MarkSyntaxError(message.into()))
}
