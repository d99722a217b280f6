//! What can be wrong with a command line.

use std::net::Ipv4Addr;

use crate::control::marks::MarkSyntaxError;
use crate::types::Family;

/// What is wrong with a command line: the text is what `ipvsadm` 1.31 prints, with the word in question added where
/// its text leaves open which one that is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrammarError {
    /// There is no command among the options. The caller prints how to get help, with the program's name.
    #[error("no command given")]
    NoCommand,
    /// Nothing on the line is an option, so there is no command; the first word.
    #[error("unexpected argument {0}")]
    NoOption(String),
    /// The words start like an option but with a dash that no keyboard means.
    #[error("unexpected argument {written} (it starts with '{dash}', not with a hyphen: write {meant})")]
    LookalikeDash {
        /// The word.
        written: String,
        /// Its first character.
        dash: char,
        /// The same with a hyphen.
        meant: String,
    },
    /// A word that is no option.
    #[error("{0}: unknown option")]
    UnknownOption(String),
    /// A cluster of letters with a hyphen inside.
    #[error("{written}: unknown option (is a blank missing before '{glued}'?)")]
    GluedOption {
        /// The word.
        written: String,
        /// Its part from the hyphen on.
        glued: String,
    },
    /// An option at the end of the line that needs a value.
    #[error("{0}: missing argument")]
    MissingArgument(String),
    /// `--numeric=5`
    #[error("{0}: option does not take an argument")]
    NoArgumentTaken(String),
    /// A second command.
    #[error("invalid option `{0}'")]
    SecondCommand(String),
    /// A word too many.
    #[error("unexpected argument {0}")]
    Unexpected(String),
    /// An option twice.
    #[error("multiple '{0}' options specified")]
    Multiple(&'static str),
    /// An option that the command needs.
    #[error("You need to supply the '{0}' option for the '{1}' command")]
    Needed(&'static str, &'static str),
    /// An option that the command does not take.
    #[error("Illegal '{0}' option with the '{1}' command")]
    Illegal(&'static str, &'static str),
    /// Two options of which the command takes one.
    #[error("The option '{0}' conflicts with the '{1}' option in the '{2}' command")]
    Conflict(&'static str, &'static str, &'static str),
    /// Columns for a listing that has none.
    #[error("options conflicts in the list command")]
    ListConflict,
    /// An option that the kind of tunnel needs.
    #[error("You need to supply the '{0}' option for the '{1}' tunnel type")]
    TunnelNeeds(&'static str, &'static str),
    /// An option that the kind of tunnel does not take.
    #[error("Illegal '{0}' option with the '{1}' tunnel type")]
    TunnelIllegal(&'static str, &'static str),
    /// Two options of which the kind of tunnel takes one.
    #[error("The option '{0}' conflicts with the '{1}' option in the '{2}' tunnel type")]
    TunnelConflict(&'static str, &'static str, &'static str),
    /// Tunnel options without `-i`.
    #[error("Tunnel options conflict with forward method")]
    TunnelMethod,
    /// An address of a service or a server that says nothing.
    #[error("illegal {0} server address[:port] specified")]
    BadAddress(&'static str),
    /// A name that nothing knows.
    #[error("illegal {which} server address[:port] specified: `{name}' does not resolve")]
    Unresolved {
        /// `virtual` or `real`.
        which: &'static str,
        /// The name.
        name: String,
    },
    /// Two digits stand the wrong way round, it seems.
    #[error("illegal {which} server address[:port] specified: `{written}' (did you mean {meant}?)")]
    Swapped {
        /// `virtual` or `real`.
        which: &'static str,
        /// The word.
        written: String,
        /// What was meant, perhaps.
        meant: Ipv4Addr,
    },
    /// `-M` for IPv4
    #[error("illegal virtual server persistent mask specified")]
    BadMask,
    /// `-M` for IPv6
    #[error("illegal ipv6 netmask specified")]
    BadIpv6Mask,
    /// `-w`
    #[error("illegal weight specified")]
    BadWeight,
    /// `-x`
    #[error("illegal u_threshold specified")]
    BadUpperThreshold,
    /// `-y`
    #[error("illegal l_threshold specified")]
    BadLowerThreshold,
    /// `-p`, `--set`
    #[error("invalid timeout value `{0}' specified")]
    BadTimeout(String),
    /// `-f`
    #[error("invalid fwmark value `{0}' specified")]
    BadMark(String),
    /// `-6` without `-f` before it
    #[error("-6 used before -f")]
    Ipv6BeforeMark,
    /// `-b` with a flag that no scheduler has
    #[error("invalid scheduler flag `{0}'")]
    UnknownFlag(String),
    /// `-b` with a flag of another scheduler
    #[error("incompatible scheduler flag `{0}'")]
    IncompatibleFlag(String),
    /// `--set` with too few numbers
    #[error("--set option requires 3 timeout values")]
    SetNeedsThree,
    /// A service for all ports that forgets its clients.
    #[error("Zero port specified for non-persistent service")]
    ZeroPort,
    /// `-o` for a protocol with connections
    #[error("One-Packet Scheduling is only for UDP virtual services")]
    OnePacketOnlyUdp,
    /// A server of the other family, not tunnelled
    #[error("Different address family is allowed only for tunneling servers")]
    MixedFamilies,
    /// `--tun-type`
    #[error("illegal tunnel type specified")]
    BadTunnelType,
    /// `--tun-port`
    #[error("illegal tunnel port specified")]
    BadTunnelPort,
    /// `--start-daemon`
    #[error("illegal start-daemon parameter specified")]
    BadStartRole,
    /// `--stop-daemon`
    #[error("illegal start_daemon specified")]
    BadStopRole,
    /// `--syncid`
    #[error("illegal syncid specified")]
    BadSyncId,
    /// `--sync-maxlen`
    #[error("illegal sync-maxlen specified")]
    BadMaxLength,
    /// `--mcast-group`
    #[error("invalid {} mcast-group `{text}'", family_name(*.family))]
    BadGroup {
        /// What the text looks like.
        family: Family,
        /// The text.
        text: String,
    },
    /// `--mcast-port`
    #[error("illegal mcast-port specified")]
    BadGroupPort,
    /// `--mcast-ttl`
    #[error("illegal mcast-ttl specified")]
    BadGroupTtl,
    /// Of a line about marks.
    #[error(transparent)]
    Mark(#[from] MarkSyntaxError),
    /// A line of rules that is longer than [`super::MAX_RULE_LENGTH`].
    #[error("the line is longer than {} bytes", super::MAX_RULE_LENGTH)]
    LineTooLong,
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl GrammarError {
    /// The exit status that goes with it: 255 where `popt` complains, 2 elsewhere.
    pub const fn status(&self) -> i32 {
        match self {
            Self::NoCommand
            | Self::UnknownOption(_)
            | Self::MissingArgument(_)
            | Self::NoArgumentTaken(_) => 255,
            _ => 2,
        }
    }

    /// Whether a line about how to get help follows: there is no telling what was wanted.
    pub const fn points_to_help(&self) -> bool {
        matches!(self, Self::NoCommand | Self::NoOption(_) | Self::LookalikeDash { .. })
    }
}
