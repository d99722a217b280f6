//! The rules of a replay: commands, settings, and when.

use super::options::{BadOption, Seconds};
use crate::control::command::Command;
use crate::control::error::ControlError;
use crate::control::grammar::{GrammarError, rules};
use crate::control::names::Names;
use crate::control::settings::Setting;
use crate::types::Duration;

/// A line of rules, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Its text.
    pub(super) text: String,
    /// When it is to be done, after the first frame; `None` for before it.
    pub(super) at: Option<Duration>,
    /// What is to be done.
    pub(super) action: Action,
}

impl Line {
    /// What a message about the line names first.
    pub(super) fn place(&self) -> String {
        format!("line {}: {}", self.number, self.text)
    }
}

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// A command of `ipvsadm`.
    Command(Command),
    /// `set NAME VALUE`
    Set {
        /// The setting.
        name: String,
        /// What it is to be.
        value: String,
    },
}

/// A line that is not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {number}: {text}\n{reason}")]
pub struct BadLine {
    /// Its number, from 1.
    pub number: usize,
    /// Its text.
    pub text: String,
    /// What is wrong with it.
    pub reason: BadLineReason,
}

/// Why a line is not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadLineReason {
    /// As a command.
    #[error("{0}")]
    Grammar(#[from] GrammarError),
    /// A setting that there is not, or a value that it cannot have.
    #[error("{0}")]
    Setting(ControlError),
    /// `set` without two words.
    #[error("write set NAME VALUE, as in set conn_reuse_mode 0")]
    Set,
    /// `@` without a moment.
    #[error("{0}")]
    Moment(BadOption),
    /// A moment and nothing to do.
    #[error("a moment without a command")]
    Empty,
}

/// Reads rules; they come in the order in which they are to be done.
///
/// # Errors
/// The first line that is not understood.
pub(super) fn read(text: &str, names: &dyn Names) -> Result<Vec<Line>, BadLine> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim();
        let understood =
            understand(line, names).map_err(|reason| BadLine { number, text: line.to_owned(), reason })?;
        if let Some((at, action)) = understood {
            lines.push(Line { number, text: line.to_owned(), at, action });
        }
    }
    // Those without a moment sort first; those of one moment stay in their order.
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

fn understand(line: &str, names: &dyn Names) -> Result<Option<(Option<Duration>, Action)>, BadLineReason> {
    let (at, rest) = match line.strip_prefix('@') {
        Some(rest) => {
            let (moment, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let Seconds(moment) = moment.parse().map_err(BadLineReason::Moment)?;
            (Some(moment), rest.trim())
        }
        None => (None, line),
    };
    if let Some(words) = rest.strip_prefix("set").filter(|rest| rest.starts_with(char::is_whitespace)) {
        return set(words.trim()).map(|action| Some((at, action)));
    }
    match rules(rest, names).next() {
        Some(rule) => Ok(Some((at, Action::Command(rule.command?)))),
        None if at.is_some() => Err(BadLineReason::Empty),
        None => Ok(None),
    }
}

fn set(words: &str) -> Result<Action, BadLineReason> {
    let (name, value) = words.split_once(char::is_whitespace).ok_or(BadLineReason::Set)?;
    let value = value.trim();
    match Setting::find(name).and_then(|setting| setting.accept(value)) {
        // Refused when its turn comes, as a command is that needs a feature that is not there.
        Ok(_) | Err(ControlError::NotSupported(_)) => {
            Ok(Action::Set { name: name.to_owned(), value: value.to_owned() })
        }
        Err(error) => Err(BadLineReason::Setting(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::names::tests::FixedNames;

    fn read_all(text: &str) -> Result<Vec<Line>, BadLine> {
        read(text, &FixedNames::new(&[]))
    }

    #[test]
    fn lines_come_in_the_order_of_their_moments() {
        let text = "# rules\n@2 -C\n-A -t 10.0.0.1:80\n\n@0.5 set sync_threshold 3 50\n@2 ipvsadm -Ln\n  set sloppy_tcp 1";
        let lines = read_all(text).unwrap();
        let numbers: Vec<usize> = lines.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [3, 7, 5, 2, 6]);
        assert_eq!(lines[2].at, Some(Duration::from_millis(500)));
        let marks = read_all("mark -F\n@1 uvs mark -t mangle -A PREROUTING -j ACCEPT\n").unwrap();
        assert!(marks.iter().all(|line| matches!(line.action, Action::Command(Command::Mark(_)))));
        let value = "3 50".to_owned();
        assert_eq!(lines[2].action, Action::Set { name: "sync_threshold".to_owned(), value });
        assert_eq!(lines[3].action, Action::Command(Command::Flush));
        assert_eq!(lines[3].place(), "line 2: @2 -C");
    }

    #[test]
    fn bad_lines_are_named() {
        for (line, message) in [
            ("-A -t 10.0.0.1:80 -w 3", "Illegal 'weight' option with the 'add-service' command"),
            ("-R", "no command given"),
            ("list", "no command given"),
            ("uvs mark -t mangel -F", "can't use table `mangel': marks are set in the table `mangle'"),
            ("@x -C", "'x' is not a number of seconds from 0 to 31622400, as in 2.5"),
            ("@-1 -C", "'-1' is not a number of seconds from 0 to 31622400, as in 2.5"),
            ("@1", "a moment without a command"),
            ("@1 # nothing", "a moment without a command"),
            ("set sloppy_tcp", "write set NAME VALUE, as in set conn_reuse_mode 0"),
            ("@3 set sloppy 1", "no setting is called 'sloppy'"),
            ("set sloppy_tcp 2", "'2' is no value for sloppy_tcp: it is a number from 0 to 1"),
        ] {
            let error = read_all(&format!("-C\n{line}\n")).unwrap_err();
            assert_eq!(error.to_string(), format!("line 2: {line}\n{message}"));
        }
        assert!(read_all("set drop_entry 1\n").is_ok(), "refused later");
    }
}
