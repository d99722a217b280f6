//! The options of `uvs run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::conn::MAX_WORKERS;

/// How frames are taken off interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IoChoice {
    /// The best that works on all interfaces: AF_XDP in the driver, raw sockets, AF_XDP in the stack
    Auto,
    /// AF_XDP
    Xdp,
    /// Raw sockets (AF_PACKET)
    Packet,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum XdpMode {
    /// In the driver where it can, else in the stack
    Auto,
    /// In the driver
    Native,
    /// In the network stack, for every driver
    Generic,
}

/// The options of `uvs run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// An interface to balance on: frames come in and go out by any of them. Repeat for more
    #[arg(long = "interface", short = 'i', value_name = "NAME", required = true)]
    pub interfaces: Vec<String>,
    /// How to get at frames
    #[arg(long, value_enum, default_value = "auto")]
    pub io: IoChoice,
    /// Where the XDP program runs
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_mode: XdpMode,
    /// Worker threads, each pinned to a core of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_WORKERS as i64))]
    pub workers: u16,
    /// Connections that fit, of IPv4 and of IPv6 each
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub connections: u32,
    /// Where to listen for commands [default: $UVS_CONTROL, or /run/uvs/control]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Rules to begin with, as ipvsadm-restore takes them, and lines 'set NAME VALUE'
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Where locks and pinned programs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = crate::io::steering::DEFAULT_DIRECTORY)]
    pub state_directory: PathBuf,
    /// Leave checksums that a sender on this host left to its network card incomplete (AF_XDP only)
    #[arg(long)]
    pub no_checksum_completion: bool,
}
