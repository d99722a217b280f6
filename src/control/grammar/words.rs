//! From the words of a command line to options with their values, by the rules of `popt`.

use super::error::GrammarError;
use super::options::{Value, WORDS, Word};

/// One option as it was written.
#[derive(Debug)]
pub(super) struct Given<'a> {
    /// Which word of the grammar.
    pub(super) word: &'static Word,
    /// Its value.
    pub(super) value: Option<&'a str>,
    /// The last word taken from the command line: what messages quote.
    pub(super) written: &'a str,
}

/// Walks over a command line.
#[derive(Debug)]
pub(super) struct Options<'a> {
    words: std::slice::Iter<'a, String>,
    /// The word with several letters that is being read, and what is left of it.
    cluster: Option<(&'a str, &'a str)>,
    /// Words that are neither options nor values.
    pub(super) leftovers: Vec<&'a str>,
}

impl<'a> Options<'a> {
    pub(super) fn new(words: &'a [String]) -> Self {
        Self { words: words.iter(), cluster: None, leftovers: Vec::new() }
    }

    /// The next option; `None` at the end, when `leftovers` is complete.
    pub(super) fn next(&mut self) -> Option<Result<Given<'a>, GrammarError>> {
        loop {
            if let Some((written, rest)) = self.cluster.take().filter(|(_, rest)| !rest.is_empty()) {
                return Some(self.letter(written, rest));
            }
            let written = self.words.next()?.as_str();
            if written == "--" {
                self.leftovers.extend(self.words.by_ref().map(String::as_str));
                return None;
            }
            if let Some(long) = written.strip_prefix("--") {
                return Some(self.long(written, long));
            }
            match written.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                Some(letters) => self.cluster = Some((written, letters)),
                None => self.leftovers.push(written),
            }
        }
    }

    fn long(&mut self, written: &'a str, long: &'a str) -> Result<Given<'a>, GrammarError> {
        let (name, attached) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let word = WORDS.iter().find(|word| word.long == name);
        let word = word.ok_or_else(|| GrammarError::UnknownOption(written.to_owned()))?;
        if word.value == Value::No && attached.is_some() {
            return Err(GrammarError::NoArgumentTaken(written.to_owned()));
        }
        self.with_value(word, written, attached)
    }

    fn letter(&mut self, written: &'a str, letters: &'a str) -> Result<Given<'a>, GrammarError> {
        let mut chars = letters.chars();
        let letter = chars.next();
        let rest = chars.as_str();
        let Some(word) = WORDS.iter().find(|word| word.short.is_some() && word.short == letter) else {
            return Err(match letter {
                Some('-') => {
                    GrammarError::GluedOption { written: written.to_owned(), glued: letters.to_owned() }
                }
                _ => GrammarError::UnknownOption(written.to_owned()),
            });
        };
        if word.value == Value::No {
            self.cluster = Some((written, rest));
            return Ok(Given { word, value: None, written });
        }
        let attached = (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest));
        self.with_value(word, written, attached)
    }

    fn with_value(
        &mut self,
        word: &'static Word,
        written: &'a str,
        attached: Option<&'a str>,
    ) -> Result<Given<'a>, GrammarError> {
        if attached.is_some() || word.value == Value::No {
            return Ok(Given { word, value: attached, written });
        }
        let next = self.words.as_slice().first().map(String::as_str);
        match (word.value, next) {
            (Value::Optional, Some(next)) if next.starts_with('-') => {
                Ok(Given { word, value: None, written })
            }
            (Value::Optional, None) => Ok(Given { word, value: None, written }),
            (_, Some(next)) => {
                self.words.next();
                Ok(Given { word, value: Some(next), written: next })
            }
            (_, None) => Err(GrammarError::MissingArgument(written.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> (Vec<(String, Option<String>)>, Vec<String>) {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let mut options = Options::new(&words);
        let mut given = Vec::new();
        while let Some(next) = options.next() {
            given.push(match next {
                Ok(Given { word, value, .. }) => (word.long.to_owned(), value.map(str::to_owned)),
                Err(error) => (format!("error: {error}"), None),
            });
        }
        (given, options.leftovers.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn letters_and_values_may_stick_together() {
        let row = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        for (words, expected) in [
            (&["-Lnc"][..], vec![row("list", None), row("numeric", None), row("connection", None)]),
            (&["-At", "1.2.3.4:80"], vec![row("add-service", None), row("tcp-service", Some("1.2.3.4:80"))]),
            (&["-t[fe80::1]:80"], vec![row("tcp-service", Some("[fe80::1]:80"))]),
            (&["-w3", "-w=3"], vec![row("weight", Some("3")), row("weight", Some("3"))]),
            (&["-p", "-s", "rr"], vec![row("persistent", None), row("scheduler", Some("rr"))]),
            (&["-p", "--"], vec![row("persistent", None)]),
            (&["-s", "--", "-p"], vec![row("scheduler", Some("--")), row("persistent", None)]),
            (&["--scheduler==rr"], vec![row("scheduler", Some("=rr"))]),
        ] {
            assert_eq!(read(words), (expected, vec![]), "{words:?}");
        }
        assert_eq!(read(&["a", "-n", "", "-", "--", "-n"]).1, ["a", "", "-", "-n"]);
    }
}
