//! What a template is found by.

use std::net::Ipv4Addr;

use crate::conn::{FlowFamily, FlowKey, Ipv4, Ipv6};
use crate::service::FTP_PORT;
use crate::types::{Duration, ServiceKey};

/// What makes a service persistent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Persistence {
    /// How long a template lives after its last use, in whole seconds.
    pub timeout: Duration,
    /// Which bits of a client's address count.
    pub mask: ClientMask,
}

/// Which bits of a client's address count, laid over the words that addresses are packed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientMask([u64; 2]);

impl ClientMask {
    /// Every bit: each client stands for itself.
    pub const ALL: Self = Self([u64::MAX; 2]);

    /// The bits of `mask`, which need not be leading ones.
    pub fn ipv4(mask: Ipv4Addr) -> Self {
        // The lower half is the virtual address.
        Self([u64::from(u32::from(mask)) << 32 | u64::from(u32::MAX), u64::MAX])
    }

    /// The `length` leading bits, at most 128.
    pub fn ipv6(length: u8) -> Self {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
        Self([(mask >> 64) as u64, mask as u64])
    }
}

/// An address family as templates need it.
pub trait TemplateFamily: FlowFamily {
    /// The addresses with the client's cut to what counts.
    fn masked(addresses: Self::Addresses, mask: ClientMask) -> Self::Addresses;
    /// The addresses with a mark in the place of the virtual one, in its first 32 bits.
    fn marked(addresses: Self::Addresses, mark: u32) -> Self::Addresses;
}

impl TemplateFamily for Ipv4 {
    fn masked([addresses]: [u64; 1], ClientMask([mask, _]): ClientMask) -> [u64; 1] {
        [addresses & mask]
    }

    fn marked([addresses]: [u64; 1], mark: u32) -> [u64; 1] {
        [addresses >> 32 << 32 | u64::from(mark)]
    }
}

impl TemplateFamily for Ipv6 {
    fn masked([a, b, c, d]: [u64; 4], ClientMask([high, low]): ClientMask) -> [u64; 4] {
        [a & high, b & low, c, d]
    }

    fn marked([a, b, _, _]: [u64; 4], mark: u32) -> [u64; 4] {
        [a, b, u64::from(mark) << 32, 0]
    }
}

/// A template's key, and what follows from how it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TemplateKey<F: FlowFamily> {
    /// Client as far as it counts, port 0; virtual address and port, or the mark and 0; protocol, 0 for a mark.
    pub flow: FlowKey<F>,
    /// Whether the template is for one port, and names the real server's.
    pub of_one_port: bool,
}

impl<F: TemplateFamily> TemplateKey<F> {
    /// The key for a packet of a persistent service, from its addresses, protocol and virtual port
    /// (`ip_vs_sched_persist`): of one port where that is the service's own and not FTP's; else of all ports, so that
    /// FTP's control and data share it; of a mark for all protocols and addresses that have the mark.
    pub fn new(
        service: &ServiceKey,
        mask: ClientMask,
        addresses: F::Addresses,
        protocol: u8,
        virtual_port: u16,
    ) -> Self {
        let masked = F::masked(addresses, mask);
        let own_port = own_port(service) == virtual_port;
        match *service {
            ServiceKey::Mark { mark, .. } if !own_port => {
                Self { flow: FlowKey::new(F::marked(masked, mark), 0, 0, 0), of_one_port: false }
            }
            _ if own_port && virtual_port != FTP_PORT => {
                Self { flow: FlowKey::new(masked, protocol, 0, virtual_port), of_one_port: true }
            }
            _ => Self { flow: FlowKey::new(masked, protocol, 0, 0), of_one_port: false },
        }
    }
}

/// The service's own port, 0 for that of a mark: to packets for it, and no others, the real server's port applies.
pub fn own_port(service: &ServiceKey) -> u16 {
    match *service {
        ServiceKey::Address { port, .. } => port,
        ServiceKey::Mark { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::types::{Family, Protocol};

    const ALL: ClientMask = ClientMask::ALL;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key<F: TemplateFamily>(service: &ServiceKey, mask: ClientMask, to: (&str, u16)) -> TemplateKey<F> {
        let (client, vip) = match F::FAMILY {
            Family::V4 => (ip("10.88.128.77"), ip(to.0)),
            Family::V6 => (ip("2001:db8:1:2:3:4:5:6"), ip(to.0)),
        };
        TemplateKey::new(service, mask, F::pack(client, vip).unwrap(), 6, to.1)
    }

    fn service(address: &str, port: u16) -> ServiceKey {
        ServiceKey::Address { protocol: Protocol::Tcp, address: ip(address), port }
    }

    /// Protocol, virtual address and port of the key, and whether it is of one port.
    fn wanted<F: TemplateFamily>(key: TemplateKey<F>) -> (u8, String, u16, bool) {
        assert_eq!(key.flow.client_port(), 0);
        let (_, destination) = key.flow.addresses();
        (key.flow.protocol(), destination.to_string(), key.flow.virtual_port(), key.of_one_port)
    }

    #[test]
    fn keys_are_of_a_port_of_all_ports_or_of_a_mark() {
        let vip = "10.88.0.100";
        let mark = ServiceKey::Mark { family: Family::V4, mark: 7 };
        // {service, the packet's port, protocol, address, port, of one port}
        let rows = [
            (service(vip, 80), 80, (6, vip, 80, true)),
            (service(vip, 21), 21, (6, vip, 0, false)),
            (service(vip, 21), 33_333, (6, vip, 0, false)),
            (service(vip, 0), 80, (6, vip, 0, false)),
            (service(vip, 0), 21, (6, vip, 0, false)),
            (mark, 80, (0, "0.0.0.7", 0, false)),
            (mark, 0, (6, vip, 0, true)),
        ];
        for (service, port, (protocol, address, key_port, of_one)) in rows {
            let got = wanted(key::<Ipv4>(&service, ALL, (vip, port)));
            assert_eq!(got, (protocol, address.to_owned(), key_port, of_one), "{service} {port}");
        }
        let mark = ServiceKey::Mark { family: Family::V6, mark: 7 };
        assert_eq!(wanted(key::<Ipv6>(&mark, ALL, ("fd88::1", 80))), (0, "0:7::".to_owned(), 0, false));
    }

    #[test]
    fn a_mask_of_any_bits_or_a_prefix_cuts_the_client_alone() {
        let v4 = |mask: &str| {
            let key = key::<Ipv4>(
                &service("10.88.0.100", 80),
                ClientMask::ipv4(mask.parse().unwrap()),
                ("10.88.0.100", 80),
            );
            let (client, destination) = key.flow.addresses();
            assert_eq!(destination, ip("10.88.0.100"));
            client.to_string()
        };
        assert_eq!(
            [v4("255.255.255.255"), v4("255.255.255.0"), v4("255.0.255.0"), v4("0.0.0.0")],
            ["10.88.128.77", "10.88.128.0", "10.0.128.0", "0.0.0.0"]
        );
        let v6 = |length| {
            let key = key::<Ipv6>(&service("fd88::1", 80), ClientMask::ipv6(length), ("fd88::1", 80));
            let (client, destination) = key.flow.addresses();
            assert_eq!(destination, ip("fd88::1"));
            client.to_string()
        };
        assert_eq!(
            [v6(128), v6(64), v6(1), v6(80)],
            ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::", "::", "2001:db8:1:2:3::"]
        );
    }
}
