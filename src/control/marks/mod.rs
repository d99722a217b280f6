//! Marks: `uvs mark`, which takes the words of `iptables -t mangle -A PREROUTING ... -j MARK`.
//!
//! * [`command`] - what may be asked, as values
//! * `grammar`, `ports`, `words`, `values` - from words to a command
//! * `listing` - `-L` in the layout of `iptables`, `-S` in that of `iptables-save`

pub mod command;
mod grammar;
pub(super) mod listing;
mod ports;
mod values;
mod words;

use std::ffi::OsString;
use std::io::Write;

use super::adm::Program;
use super::client::control_path;
use super::command::Command;
use super::exchange::Remote;
use super::names::{Names, SystemNames};
use command::MarkCommand;
use grammar::Asked;

/// The table that the rules are in.
const TABLE: &str = "mangle";
/// The chain that they are in: packets are marked as they come in, before anything else is done with them.
const CHAIN: &str = "PREROUTING";
/// What the program calls itself.
const PROGRAM: &str = "uvs mark";
/// The exit status where the words are not understood: what iptables calls a parameter problem.
const MISUNDERSTOOD: i32 = 2;

/// What is wrong with a command line, in the words of `iptables` where it has any.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MarkSyntaxError(String);

/// Reads the words of a rule line, those after `mark`.
///
/// # Errors
/// What is wrong with them. Nothing has been changed anywhere then; host names may have been looked up.
pub(super) fn parse(words: &[String], names: &dyn Names) -> Result<MarkCommand, MarkSyntaxError> {
    match grammar::parse(words, names)? {
        Asked::Command(command) => Ok(command),
        Asked::Help | Asked::Version => words::fail("no command specified"),
    }
}

/// Runs `uvs mark`, `args` without its name; returns the exit status: 0, 1 where the director refused, 2 where the words
/// are not understood or no director was reached.
pub fn mark(args: &[OsString], stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    let (names, path) = (SystemNames::new(), control_path());
    Program { names: &names, director: &mut Remote::new(&path), stdout, stderr }.mark(args)
}

impl Program<'_> {
    /// As [`mark`].
    pub fn mark(&mut self, args: &[OsString]) -> i32 {
        let words: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let text = match grammar::parse(&words, self.names) {
            Ok(Asked::Command(command)) => return self.execute(PROGRAM, None, Command::Mark(command)),
            Ok(Asked::Help) => format!("{}{USAGE}", version()),
            Ok(Asked::Version) => version(),
            Err(error) => {
                // Where nobody reads it, there is nobody to tell that either.
                let _ = writeln!(
                    self.stderr,
                    "{PROGRAM}: {error}\nTry `{PROGRAM} -h' or '{PROGRAM} --help' for more information."
                );
                return MISUNDERSTOOD;
            }
        };
        let printed = self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush());
        i32::from(printed.is_err())
    }
}

fn version() -> String {
    format!("iptables v1.8.9 as spoken by uvs {}\n", env!("CARGO_PKG_VERSION"))
}

/// What `-h` prints after the version.
const USAGE: &str = "
Usage: uvs mark [-6] [-t mangle] COMMAND
  -A PREROUTING RULE              a rule at the end          (--append)
  -I PREROUTING [NUMBER] RULE     a rule at this place       (--insert)
  -R PREROUTING NUMBER RULE       a rule instead of another  (--replace)
  -D PREROUTING RULE | NUMBER     a rule goes                (--delete)
  -C PREROUTING RULE              is there such a rule?      (--check)
  -L [PREROUTING [NUMBER]]        the rules, with -n -v -x --line-numbers
  -S [PREROUTING [NUMBER]]        the rules as commands, with -v
  -F [PREROUTING]                 all rules go               (--flush)
  -Z [PREROUTING [NUMBER]]        counters back to zero      (--zero)

RULE is made of, each but -j and -m with ! before it for the opposite:
  -s, -d  ADDRESS[/MASK][,...]    source, destination
  -i      NAME[+]                 the director's interface that a packet comes in by
  -p      tcp|udp|sctp|all|NUMBER
  --sport, --dport PORT[:PORT]    after -p
  -m multiport --sports|--dports|--ports PORT[:PORT][,...]
  -j MARK --set-mark|--set-xmark VALUE[/MASK], --or-mark|--and-mark|--xor-mark VALUE
  -j ACCEPT, -j RETURN            the mark stays as it is by now

Rules of IPv4 and of IPv6 are kept apart: -6, or an IPv6 address in the rule, says which.
";

#[cfg(test)]
mod tests;
