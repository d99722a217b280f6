//! The options of `uvs lab`.

use std::net::SocketAddr;

use super::host::{Host, MAX_CLIENTS, MAX_SERVERS};
use super::topology::{PORT, Plan};
use crate::control::command::DEFAULT_PERSISTENCE;
use crate::types::{Family, ForwardingMethod};

/// How the director gets at its frames.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum IoKind {
    /// What the interface can do best.
    #[default]
    Auto,
    /// AF_XDP.
    Xdp,
    /// Raw sockets.
    Packet,
}

/// Where the XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum XdpMode {
    /// In the driver, where it can be.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

/// How packets get to the real servers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum Forwarding {
    /// Direct routing: answers bypass the director
    #[default]
    Dr,
    /// NAT: the director is the real servers' gateway
    Nat,
    /// IP in IP tunnels: answers bypass the director
    Tun,
}

impl Forwarding {
    /// As the director has it.
    fn method(self) -> ForwardingMethod {
        match self {
            Self::Dr => ForwardingMethod::DirectRouting,
            Self::Nat => ForwardingMethod::Masquerading,
            Self::Tun => ForwardingMethod::Tunnel,
        }
    }

    /// The option of `uvs adm` that asks for it.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Dr => "-g",
            Self::Nat => "-m",
            Self::Tun => "-i",
        }
    }

    /// What it means, in a sentence.
    pub(super) fn explanation(self) -> &'static str {
        match self {
            Self::Dr => "direct routing: answers bypass the director.",
            Self::Nat => "NAT: answers go back through the director.",
            Self::Tun => "tunnels: answers bypass the director.",
        }
    }
}

/// Options of `uvs lab`.
#[derive(Clone, PartialEq, Eq, Debug, clap::Args)]
pub struct LabOptions {
    /// How many requests the client sends
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// The scheduler of the virtual service
    #[arg(long, value_name = "NAME", default_value = "rr")]
    pub scheduler: String,
    /// How many real servers there are
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_SERVERS)))]
    pub servers: u8,
    /// How many clients send requests, by turns; four where they are to stick
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CLIENTS)))]
    pub clients: Option<u8>,
    /// Let each client stick to one real server, for so many seconds after its last connection
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = default_persistence(),
        value_parser = clap::value_parser!(u32).range(1..=2_678_400))]
    pub persistent: Option<u32>,
    /// Select the service's packets by a mark
    #[arg(long, value_name = "MARK", num_args = 0..=1, default_missing_value = "10",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub mark: Option<u32>,
    /// How the director gets at its frames
    #[arg(long, value_enum, default_value_t)]
    pub io: IoKind,
    /// Where the XDP program is attached
    #[arg(long, value_enum, default_value_t)]
    pub xdp_mode: XdpMode,
    /// How packets get to the real servers
    #[arg(long, value_enum, default_value_t)]
    pub forwarding: Forwarding,
    /// IPv6 everywhere, in the place of IPv4
    #[arg(long)]
    pub ipv6: bool,
    /// Leave everything up after the requests, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// What `--persistent` alone asks for: as much as `-p` alone does.
fn default_persistence() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| DEFAULT_PERSISTENCE.to_string());
    &TEXT
}

impl LabOptions {
    /// How many clients there are.
    pub(super) fn clients(&self) -> u8 {
        self.clients.unwrap_or(if self.persistent.is_some() { 4 } else { 1 })
    }

    /// Of all addresses.
    pub(super) fn family(&self) -> Family {
        if self.ipv6 { Family::V6 } else { Family::V4 }
    }

    /// The virtual service's address and port.
    pub(super) fn socket(&self) -> SocketAddr {
        SocketAddr::new(Host::Virtual.address(self.family()), PORT)
    }

    /// The network that is asked for.
    pub(super) fn plan(&self) -> Plan {
        Plan {
            family: self.family(),
            forwarding: self.forwarding.method(),
            clients: self.clients(),
            servers: self.servers,
        }
    }

    /// The words that select the virtual service.
    pub(super) fn service(&self) -> Vec<String> {
        match (self.mark, self.family()) {
            (None, _) => vec!["-t".to_owned(), self.socket().to_string()],
            (Some(mark), Family::V4) => vec!["-f".to_owned(), mark.to_string()],
            (Some(mark), Family::V6) => vec!["-f".to_owned(), mark.to_string(), "-6".to_owned()],
        }
    }

    /// The director's options that follow from these.
    pub(super) fn for_director(&self) -> Vec<String> {
        let mut options = Vec::new();
        let mut pass = |name: &str, value: &str| options.extend([name.to_owned(), value.to_owned()]);
        match self.io {
            IoKind::Auto => {}
            IoKind::Xdp => pass("--io", "xdp"),
            IoKind::Packet => pass("--io", "packet"),
        }
        match self.xdp_mode {
            XdpMode::Auto => {}
            XdpMode::Native => pass("--xdp-mode", "native"),
            XdpMode::Generic => pass("--xdp-mode", "generic"),
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        lab: LabOptions,
    }

    fn parse(arguments: &[&str]) -> Result<LabOptions, clap::Error> {
        Program::try_parse_from([&["lab"], arguments].concat()).map(|program| program.lab)
    }

    #[test]
    fn options_have_defaults_and_bounds() {
        let defaults = parse(&[]).unwrap();
        assert_eq!((defaults.requests, defaults.scheduler.as_str(), defaults.servers), (100, "rr", 2));
        assert!(!defaults.keep && defaults.for_director().is_empty());
        let options = parse(&["--io", "xdp", "--xdp-mode", "generic", "--servers", "16", "--keep"]).unwrap();
        assert_eq!(options.for_director(), ["--io", "xdp", "--xdp-mode", "generic"]);
        assert!(options.keep);
        assert_eq!((defaults.clients(), defaults.persistent, defaults.mark), (1, None, None));
        assert_eq!(defaults.service(), ["-t", "192.168.50.100:80"]);
        assert_eq!(defaults.forwarding.flag(), "-g");
        let six = parse(&["--ipv6", "--forwarding", "nat"]).unwrap();
        assert_eq!(
            (six.service(), six.forwarding.flag()),
            (vec!["-t".to_owned(), "[fd00:50::100]:80".to_owned()], "-m")
        );
        let six = parse(&["--ipv6", "--forwarding", "tun", "--mark"]).unwrap();
        assert_eq!((six.service().join(" "), six.forwarding.flag()), ("-f 10 -6".to_owned(), "-i"));
        let sticky = parse(&["--persistent", "--mark"]).unwrap();
        assert_eq!((sticky.clients(), sticky.persistent, sticky.mark), (4, Some(360), Some(10)));
        assert_eq!(sticky.service(), ["-f", "10"]);
        let sticky = parse(&["--persistent", "5", "--mark=7", "--clients", "2"]).unwrap();
        assert_eq!((sticky.clients(), sticky.persistent, sticky.mark), (2, Some(5), Some(7)));
        for bad in [
            ["--clients", "17"],
            ["--persistent", "0"],
            ["--mark", "0"],
            ["--servers", "0"],
            ["--servers", "17"],
            ["--requests", "0"],
            ["--io", "dpdk"],
            ["--forwarding", "local"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
