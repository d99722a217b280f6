//! The words of the grammar: commands, options, and which command takes which options.
//!
//! What each command accepts, and the order in which complaints come, was observed on `ipvsadm` 1.31 by giving it
//! every option with every command (`tests/oracle/text/grammar.json`).

/// A command's letter or long word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    AddService,
    EditService,
    DeleteService,
    Flush,
    Restore,
    Save,
    AddServer,
    EditServer,
    DeleteServer,
    List,
    Zero,
    SetTimeouts,
    StartDaemon,
    StopDaemon,
    Help,
    Version,
}

impl Verb {
    /// What messages call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::AddService => "add-service",
            Self::EditService => "edit-service",
            Self::DeleteService => "delete-service",
            Self::Flush => "flush",
            Self::Restore => "restore",
            Self::Save => "save",
            Self::AddServer => "add-server",
            Self::EditServer => "edit-server",
            Self::DeleteServer => "delete-server",
            Self::List => "list",
            Self::Zero => "zero",
            Self::SetTimeouts => "set",
            Self::StartDaemon => "start-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::Help => "help",
            Self::Version => "version",
        }
    }

    /// What it does with option `id`.
    pub(super) const fn takes(self, id: Id) -> Takes {
        use Id as I;
        use Takes::{Exclusive, May, Must, Never};
        match (self, id) {
            (
                Self::AddService
                | Self::EditService
                | Self::DeleteService
                | Self::AddServer
                | Self::EditServer
                | Self::DeleteServer,
                I::Service,
            )
            | (Self::AddServer | Self::EditServer | Self::DeleteServer, I::Server) => Must,
            (
                Self::AddService | Self::EditService,
                I::Scheduler | I::Persistent | I::Netmask | I::OnePacket | I::Engine | I::SchedulerFlags,
            )
            | (
                Self::AddServer | Self::EditServer,
                I::Method
                | I::Weight
                | I::Upper
                | I::Lower
                | I::TunnelType
                | I::TunnelPort
                | I::TunnelNoChecksum
                | I::TunnelChecksum
                | I::TunnelRemoteChecksum,
            )
            | (Self::Save, I::Numeric)
            | (Self::Zero, I::Service)
            | (Self::StopDaemon, I::Identity)
            | (
                Self::StartDaemon,
                I::Interface | I::Identity | I::Group | I::GroupPort | I::GroupTtl | I::MaxLength,
            )
            | (
                Self::List,
                I::Numeric
                | I::Stats
                | I::Rate
                | I::Thresholds
                | I::PersistentConn
                | I::NoSort
                | I::Identity
                | I::Exact
                | I::TunnelInfo,
            ) => May,
            (Self::List, I::Connection | I::Service | I::Timeout | I::Daemon) => Exclusive,
            _ => Never,
        }
    }
}

/// What a command, or a kind of tunnel, does with an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Takes {
    /// It is an error.
    Never,
    /// As you like.
    May,
    /// It has to be there.
    Must,
    /// At most one of those marked so.
    Exclusive,
}

/// An option that may be given once, in the order in which complaints about them come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Id {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Server,
    Method,
    Weight,
    Upper,
    Lower,
    Interface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    Identity,
    Exact,
    OnePacket,
    Engine,
    SchedulerFlags,
    Group,
    GroupPort,
    GroupTtl,
    MaxLength,
    TunnelInfo,
    TunnelType,
    TunnelPort,
    TunnelNoChecksum,
    TunnelChecksum,
    TunnelRemoteChecksum,
}

impl Id {
    /// All, in order, each with what messages call it.
    pub(super) const ALL: [(Self, &'static str); 34] = [
        (Self::Numeric, "numeric"),
        (Self::Connection, "connection"),
        (Self::Service, "service-address"),
        (Self::Scheduler, "scheduler"),
        (Self::Persistent, "persistent"),
        (Self::Netmask, "netmask"),
        (Self::Server, "real-server"),
        (Self::Method, "forwarding-method"),
        (Self::Weight, "weight"),
        (Self::Upper, "u-threshold"),
        (Self::Lower, "l-threshold"),
        (Self::Interface, "mcast-interface"),
        (Self::Timeout, "timeout"),
        (Self::Daemon, "daemon"),
        (Self::Stats, "stats"),
        (Self::Rate, "rate"),
        (Self::Thresholds, "thresholds"),
        (Self::PersistentConn, "persistent-conn"),
        (Self::NoSort, "nosort"),
        (Self::Identity, "syncid"),
        (Self::Exact, "exact"),
        (Self::OnePacket, "ops"),
        (Self::Engine, "pe"),
        (Self::SchedulerFlags, "sched-flags"),
        (Self::Group, "mcast-group"),
        (Self::GroupPort, "mcast-port"),
        (Self::GroupTtl, "mcast-ttl"),
        (Self::MaxLength, "sync-maxlen"),
        (Self::TunnelInfo, "tun-info"),
        (Self::TunnelType, "tun-type"),
        (Self::TunnelPort, "tun-port"),
        (Self::TunnelNoChecksum, "tun-nocsum"),
        (Self::TunnelChecksum, "tun-csum"),
        (Self::TunnelRemoteChecksum, "tun-remcsum"),
    ];

    /// What messages call it.
    pub(super) const fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A set of options.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Ids(u64);

impl Ids {
    /// Whether `id` is in it.
    pub(super) const fn has(self, id: Id) -> bool {
        self.0 & 1 << id as u8 != 0
    }

    /// Puts `id` in; false when it was.
    pub(super) fn insert(&mut self, id: Id) -> bool {
        let fresh = !self.has(id);
        self.0 |= 1 << id as u8;
        fresh
    }
}

/// What a word of the grammar does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Chooses the command.
    Verb(Verb),
    /// Gives an option; of the three methods and services each is a word of its own.
    Option(Id),
    /// `-t`, `-u`, `--sctp-service`
    Service(crate::types::Protocol),
    /// `-f`
    Mark,
    /// `-6`
    Ipv6,
    /// `-g`, `-i`, `-m`
    Method(crate::types::ForwardingMethod),
    /// `--sort`, which does nothing
    Nothing,
}

/// Whether a word takes a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// None.
    No,
    /// The next word, whatever it is.
    Required,
    /// The next word unless it starts with a hyphen.
    Optional,
}

/// One word of the grammar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// After two hyphens.
    pub(super) long: &'static str,
    /// After one.
    pub(super) short: Option<char>,
    /// Whether a value follows.
    pub(super) value: Value,
    /// What it does.
    pub(super) action: Action,
}

const fn word(long: &'static str, short: Option<char>, value: Value, action: Action) -> Word {
    Word { long, short, value, action }
}

/// The grammar's words.
#[rustfmt::skip]
pub(super) const WORDS: [Word; 58] = {
    use crate::types::{ForwardingMethod as M, Protocol as P};
    use Action::{Ipv6, Mark, Method, Nothing, Option as O, Service as S, Verb as V};
    use Value::{No, Optional, Required};
    [
        word("add-service", Some('A'), No, V(Verb::AddService)),
        word("edit-service", Some('E'), No, V(Verb::EditService)),
        word("delete-service", Some('D'), No, V(Verb::DeleteService)),
        word("clear", Some('C'), No, V(Verb::Flush)),
        word("list", Some('L'), No, V(Verb::List)),
        word("list", Some('l'), No, V(Verb::List)),
        word("zero", Some('Z'), No, V(Verb::Zero)),
        word("add-server", Some('a'), No, V(Verb::AddServer)),
        word("edit-server", Some('e'), No, V(Verb::EditServer)),
        word("delete-server", Some('d'), No, V(Verb::DeleteServer)),
        word("set", None, No, V(Verb::SetTimeouts)),
        word("help", Some('h'), No, V(Verb::Help)),
        word("version", Some('v'), No, V(Verb::Version)),
        word("restore", Some('R'), No, V(Verb::Restore)),
        word("save", Some('S'), No, V(Verb::Save)),
        word("start-daemon", None, Required, V(Verb::StartDaemon)),
        word("stop-daemon", None, Required, V(Verb::StopDaemon)),
        word("tcp-service", Some('t'), Required, S(P::Tcp)),
        word("udp-service", Some('u'), Required, S(P::Udp)),
        word("sctp-service", None, Required, S(P::Sctp)),
        word("fwmark-service", Some('f'), Required, Mark),
        word("scheduler", Some('s'), Required, O(Id::Scheduler)),
        word("persistent", Some('p'), Optional, O(Id::Persistent)),
        word("netmask", Some('M'), Required, O(Id::Netmask)),
        word("real-server", Some('r'), Required, O(Id::Server)),
        word("masquerading", Some('m'), No, Method(M::Masquerading)),
        word("ipip", Some('i'), No, Method(M::Tunnel)),
        word("gatewaying", Some('g'), No, Method(M::DirectRouting)),
        word("weight", Some('w'), Required, O(Id::Weight)),
        word("u-threshold", Some('x'), Required, O(Id::Upper)),
        word("l-threshold", Some('y'), Required, O(Id::Lower)),
        word("numeric", Some('n'), No, O(Id::Numeric)),
        word("connection", Some('c'), No, O(Id::Connection)),
        word("mcast-interface", None, Required, O(Id::Interface)),
        word("syncid", None, Required, O(Id::Identity)),
        word("timeout", None, No, O(Id::Timeout)),
        word("daemon", None, No, O(Id::Daemon)),
        word("stats", None, No, O(Id::Stats)),
        word("rate", None, No, O(Id::Rate)),
        word("thresholds", None, No, O(Id::Thresholds)),
        word("persistent-conn", None, No, O(Id::PersistentConn)),
        word("nosort", None, No, O(Id::NoSort)),
        word("sort", None, No, Nothing),
        word("exact", None, No, O(Id::Exact)),
        word("ipv6", Some('6'), No, Ipv6),
        word("ops", Some('o'), No, O(Id::OnePacket)),
        word("pe", None, Required, O(Id::Engine)),
        word("sched-flags", Some('b'), Required, O(Id::SchedulerFlags)),
        word("sync-maxlen", None, Required, O(Id::MaxLength)),
        word("mcast-group", None, Required, O(Id::Group)),
        word("mcast-port", None, Required, O(Id::GroupPort)),
        word("mcast-ttl", None, Required, O(Id::GroupTtl)),
        word("tun-info", None, No, O(Id::TunnelInfo)),
        word("tun-type", None, Required, O(Id::TunnelType)),
        word("tun-port", None, Required, O(Id::TunnelPort)),
        word("tun-nocsum", None, No, O(Id::TunnelNoChecksum)),
        word("tun-csum", None, No, O(Id::TunnelChecksum)),
        word("tun-remcsum", None, No, O(Id::TunnelRemoteChecksum)),
    ]
};
