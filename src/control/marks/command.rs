//! What may be asked about marks, as plain values.

use serde::{Deserialize, Serialize};

use crate::service::marks::MarkRule;
use crate::types::Family;

/// Most rules that one command makes: one for each pair of a source and a destination that it lists.
pub const MAX_RULES_AT_ONCE: usize = 256;

/// One command about the rules of an address family. Places count from 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MarkCommand {
    /// `-A`: new rules at the end
    Append {
        /// The rules, of one family.
        rules: Vec<MarkRule>,
    },
    /// `-I`: each rule is put at this place, the last of them last
    Insert {
        /// Where.
        place: u32,
        /// The rules, of one family.
        rules: Vec<MarkRule>,
    },
    /// `-R`
    Replace {
        /// Which rule goes.
        place: u32,
        /// What comes instead.
        rule: MarkRule,
    },
    /// `-D` with a rule: the first that is the same, of each
    Delete {
        /// The rules, of one family.
        rules: Vec<MarkRule>,
    },
    /// `-D` with a place
    DeleteAt {
        /// Of which family.
        family: Family,
        /// Which rule.
        place: u32,
    },
    /// `-C`: whether all of these are there
    Check {
        /// The rules, of one family.
        rules: Vec<MarkRule>,
    },
    /// `-F`
    Flush {
        /// Of which family.
        family: Family,
    },
    /// `-Z`: counters back to zero
    Zero {
        /// Of which family.
        family: Family,
        /// Of which rule; `None` means of all.
        place: Option<u32>,
    },
    /// `-P PREROUTING ACCEPT` and `-X`: as it is anyway
    Nothing,
    /// `-L`
    List {
        /// Of which family.
        family: Family,
        /// Which rule; `None` means all, and the headings.
        place: Option<u32>,
        /// How to print it.
        options: MarkListOptions,
    },
    /// `-S`: the rules as commands
    Save {
        /// Of which family.
        family: Family,
        /// Which rule; `None` means all, and the policy.
        place: Option<u32>,
        /// `-v`: with counters
        counters: bool,
    },
}

/// How `-L` prints.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct MarkListOptions {
    /// `-n`: addresses, ports and protocols as numbers
    pub numeric: bool,
    /// `-v`: with counters and interfaces
    pub verbose: bool,
    /// `-x`: counters in full
    pub exact: bool,
    /// `--line-numbers`
    pub line_numbers: bool,
}

/// A rule as a director reports it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MarkRow {
    /// Its place, from 1.
    pub place: u32,
    /// The rule.
    pub rule: MarkRule,
    /// Packets without a connection that matched.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}
