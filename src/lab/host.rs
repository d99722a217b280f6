//! Who has which addresses in the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{Family, MacAddress, Prefix};

/// Most real servers.
pub const MAX_SERVERS: u8 = 16;
/// Most clients.
pub const MAX_CLIENTS: u8 = 16;

/// The clients' network, and that of director and real servers: the third octet over IPv4.
const OUTSIDE: u8 = 20;
const INSIDE: u8 = 50;

/// Somebody with an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A client, counted from 0. All of them are in one namespace.
    Client(u8),
    /// The router on the clients' side, their gateway.
    RouterOutside,
    /// The router on the director's side, the gateway there.
    RouterInside,
    /// The director itself.
    Director,
    /// The virtual service.
    Virtual,
    /// A real server, counted from 0.
    RealServer(u8),
}

impl Host {
    /// The network that it is in, and its number there.
    fn place(self) -> (u8, u8) {
        const DIRECTOR: u8 = 31;
        match self {
            Self::Client(index) => (OUTSIDE, 17 + index.min(MAX_CLIENTS - 1)),
            Self::RouterOutside => (OUTSIDE, 50),
            Self::RouterInside => (INSIDE, 50),
            Self::Director => (INSIDE, DIRECTOR),
            Self::Virtual => (INSIDE, 100),
            Self::RealServer(index) => {
                let number = 22 + index.min(MAX_SERVERS - 1);
                (INSIDE, if number < DIRECTOR { number } else { number + 1 })
            }
        }
    }

    /// Its address: 192.168.50.22, or fd00:50::22 with the same digits (a local network of RFC 4193).
    pub fn address(self, family: Family) -> IpAddr {
        let (network, number) = self.place();
        match family {
            Family::V4 => Ipv4Addr::new(192, 168, network, number).into(),
            Family::V6 => {
                let [network, number] = [network, number].map(same_digits);
                Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, number).into()
            }
        }
    }

    /// Its address, with the network that it is in.
    pub(super) fn in_network(self, family: Family) -> Prefix {
        let length = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        Prefix::new(self.address(family), length)
    }

    /// An Ethernet address from which its IPv4 address can be read off.
    pub(super) fn mac(self) -> MacAddress {
        let (network, number) = self.place();
        MacAddress([0x02, 0x00, 192, 168, network, number])
    }

    /// The same for the far end of its cable.
    pub(super) fn far_mac(self) -> MacAddress {
        let (network, number) = self.place();
        MacAddress([0x02, 0x01, 192, 168, network, number])
    }
}

/// The number that is written in hexadecimal as this one in decimal.
fn same_digits(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_hosts_share_an_address() {
        let fixed = [Host::RouterOutside, Host::RouterInside, Host::Director, Host::Virtual];
        let servers = (0..MAX_SERVERS).map(Host::RealServer);
        let hosts: Vec<Host> =
            fixed.into_iter().chain(servers).chain((0..MAX_CLIENTS).map(Host::Client)).collect();
        for family in [Family::V4, Family::V6] {
            let addresses: HashSet<IpAddr> = hosts.iter().map(|host| host.address(family)).collect();
            assert_eq!(addresses.len(), hosts.len());
        }
        let macs: HashSet<[u8; 6]> = hosts.iter().flat_map(|host| [host.mac().0, host.far_mac().0]).collect();
        assert_eq!(macs.len(), 2 * hosts.len());
    }

    #[test]
    fn both_families_have_the_same_digits() {
        for (host, four, six) in [
            (Host::Client(0), "192.168.20.17", "fd00:20::17"),
            (Host::Virtual, "192.168.50.100", "fd00:50::100"),
            (Host::RealServer(0), "192.168.50.22", "fd00:50::22"),
            (Host::RealServer(9), "192.168.50.32", "fd00:50::32"),
        ] {
            assert_eq!(host.address(Family::V4).to_string(), four);
            assert_eq!(host.address(Family::V6).to_string(), six);
        }
    }
}
