//! The command line of `uvs replay`.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::topology::{Interface, Neighbour, Topology};
use super::{MAX_SPAN, ReplayError};
use crate::types::{BadMacAddress, BadPrefix, Duration, MacAddress, Prefix};

/// Most connections that a replay has room for: the tables take some 200 bytes each.
const MAX_CONNECTIONS: i64 = 1 << 26;

/// What a replay is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rules as `ipvsadm -R` takes them, listings, and lines `set NAME VALUE`; a line may begin with @SECONDS, its
    /// moment after the first frame
    #[arg(long, value_name = "FILE")]
    pub rules: PathBuf,
    /// A capture to read, pcap or pcapng, and the interface that its frames arrive on; may be repeated
    #[arg(long = "in", value_name = "[NAME=]FILE", required = true)]
    pub inputs: Vec<OsString>,
    /// Where to write the frames that are sent; pcapng if its name ends so, else pcap
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Where to write the frames that the host gets
    #[arg(long, value_name = "FILE")]
    pub host_out: Option<PathBuf>,
    /// An interface: its name, its addresses (virtual ones, too) and its link address; may be repeated
    #[arg(long = "interface", value_name = "NAME,ADDRESS/PREFIX[,...],MAC", required = true)]
    pub interfaces: Vec<InterfaceOption>,
    /// Who has which link address, and behind which interface where that is not plain; may be repeated
    #[arg(long = "next-hop", value_name = "ADDRESS=MAC[@NAME]")]
    pub next_hops: Vec<NextHopOption>,
    /// The way to real servers that are in no interface's network; one for IPv4, one for IPv6
    #[arg(long = "gateway", value_name = "ADDRESS")]
    pub gateways: Vec<IpAddr>,
    /// A listing to print after the last frame, as in --show '-L -n -c'; may be repeated
    #[arg(long, value_name = "LISTING", allow_hyphen_values = true)]
    pub show: Vec<String>,
    /// Let time go on until so many seconds after the first frame
    #[arg(long, value_name = "SECONDS")]
    pub until: Option<Seconds>,
    /// Room for so many connections
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
    pub connections: u32,
}

impl Options {
    /// The network that the options describe.
    ///
    /// # Errors
    /// What does not fit together.
    pub(super) fn topology(&self) -> Result<Topology, ReplayError> {
        let interfaces: Vec<Interface> = self.interfaces.iter().map(|option| option.0.clone()).collect();
        let neighbours = self.next_hops.iter().map(|hop| {
            let port = hop.interface.as_deref().map(|name| {
                let position = interfaces.iter().position(|interface| interface.name == name);
                let index = position.and_then(|position| u16::try_from(position).ok());
                index.map(crate::types::PortId).ok_or_else(|| ReplayError::NoSuchInterface(name.to_owned()))
            });
            Ok(Neighbour { address: hop.address, mac: hop.mac, port: port.transpose()? })
        });
        let neighbours: Vec<Neighbour> = neighbours.collect::<Result<_, ReplayError>>()?;
        Ok(Topology::new(interfaces, &neighbours, self.gateways.clone())?)
    }
}

/// The value of `--interface`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceOption(pub Interface);

/// What is wrong with the value of an option.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadOption {
    /// An interface without its three parts.
    #[error("write NAME,ADDRESS/PREFIX,MAC, as in eth0,192.0.2.1/24,02:00:00:00:00:01")]
    Interface,
    /// A name that no interface can have.
    #[error("'{0}' is no interface's name")]
    Name(String),
    /// A neighbour without address or link address.
    #[error(
        "write ADDRESS=MAC, as in 192.0.2.11=02:00:00:00:00:0b, and @NAME where it is behind another interface"
    )]
    NextHop,
    /// No IP address.
    #[error("'{0}' is not an IP address")]
    Address(String),
    /// No number of seconds.
    #[error("'{0}' is not a number of seconds from 0 to {max}, as in 2.5", max = MAX_SPAN.as_secs())]
    Seconds(String),
    /// No link address.
    #[error(transparent)]
    Mac(#[from] BadMacAddress),
    /// No network.
    #[error(transparent)]
    Prefix(#[from] BadPrefix),
}

impl FromStr for InterfaceOption {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let (name, rest) = text.split_once(',').ok_or(BadOption::Interface)?;
        let (addresses, mac) = rest.rsplit_once(',').ok_or(BadOption::Interface)?;
        if name.is_empty() || name.contains(['/', '=', '@']) || name.contains(char::is_whitespace) {
            return Err(BadOption::Name(name.to_owned()));
        }
        let addresses = addresses.split(',').map(Prefix::from_str).collect::<Result<_, _>>()?;
        Ok(Self(Interface { name: name.to_owned(), addresses, mac: mac.parse()? }))
    }
}

/// The value of `--next-hop`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextHopOption {
    address: IpAddr,
    mac: MacAddress,
    interface: Option<String>,
}

impl FromStr for NextHopOption {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let (address, rest) = text.split_once('=').ok_or(BadOption::NextHop)?;
        let (mac, interface) = match rest.split_once('@') {
            Some((mac, name)) => (mac, Some(name.to_owned())),
            None => (rest, None),
        };
        let address = address.parse().map_err(|_| BadOption::Address(address.to_owned()))?;
        Ok(Self { address, mac: mac.parse()?, interface })
    }
}

/// A number of seconds, at most [`MAX_SPAN`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seconds(pub Duration);

impl FromStr for Seconds {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let bad = || BadOption::Seconds(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !are_digits(whole) || !are_digits(fraction) {
            return Err(bad());
        }
        let seconds: u64 = whole.parse().map_err(|_| bad())?;
        // Digits beyond nanoseconds say nothing here.
        let nanoseconds = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
        let nanoseconds = nanoseconds.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let span = seconds.checked_mul(1_000_000_000).and_then(|whole| whole.checked_add(nanoseconds));
        let span = Duration::from_nanos(span.ok_or_else(bad)?);
        if span > MAX_SPAN { Err(bad()) } else { Ok(Self(span)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_to_the_nanosecond() {
        let nanos = |text: &str| text.parse::<Seconds>().map(|seconds| seconds.0.as_nanos()).ok();
        assert_eq!(nanos("0"), Some(0));
        assert_eq!(nanos("2.5"), Some(2_500_000_000));
        assert_eq!(nanos("1.0000000019"), Some(1_000_000_001));
        assert_eq!(nanos("31622400"), Some(31_622_400_000_000_000));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "31622400.1", "99999999999999999999", "1 "] {
            assert_eq!(nanos(bad), None, "{bad}");
        }
    }
}
