//! Links, addresses and neighbours out of the kernel's messages. Total: a message that lacks what it
//! must have decodes to nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::constants as k;
use super::message::{Attributes, Message, read_u8, read_u16, read_u32};
use crate::forward::VlanTag;
use crate::types::{MacAddress, Prefix};

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index, unique in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; none where it has no address of six bytes.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Switched on (IFF_UP).
    pub up: bool,
    /// Switched on and able to carry traffic (IFF_RUNNING).
    pub running: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// Receive queues.
    pub receive_queues: u32,
    /// Transmit queues.
    pub transmit_queues: u32,
    /// The interface that this one is stacked on, where that is in the same network namespace.
    pub parent: Option<u32>,
    /// The tag, where this is a VLAN interface on [`parent`](Self::parent).
    pub vlan: Option<VlanTag>,
    /// A macvlan on [`parent`](Self::parent): another Ethernet address of the same cable.
    pub macvlan: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterfaceAddress {
    /// The interface's index.
    pub link: u32,
    /// The address, and the size of the network around it.
    pub prefix: Prefix,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourEntry {
    /// The interface's index.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its Ethernet address, where known.
    pub mac: Option<MacAddress>,
    /// NUD_*.
    pub state: u16,
}

/// The address in an attribute's value.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}

/// The Ethernet address in an attribute's value.
fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}

/// The text in an attribute's value, without the zero that ends it.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

impl Link {
    /// The link that a RTM_NEWLINK message tells of.
    pub fn decode(message: Message<'_>) -> Option<Self> {
        if message.kind != k::RTM_NEWLINK || read_u8(message.payload, 0)? != k::AF_UNSPEC {
            return None; // a bridge's own family of link messages tells of its ports, not of links
        }
        let flags = read_u32(message.payload, 8)?;
        let mut link = Self {
            index: read_u32(message.payload, 4)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags & k::IFF_UP != 0,
            running: flags & (k::IFF_UP | k::IFF_RUNNING) == k::IFF_UP | k::IFF_RUNNING,
            loopback: flags & k::IFF_LOOPBACK != 0,
            receive_queues: 1,
            transmit_queues: 1,
            parent: None,
            vlan: None,
            macvlan: false,
        };
        let mut parent_elsewhere = false;
        for (kind, value) in Attributes::after(message.payload, k::LINK_FIXED) {
            match kind {
                k::IFLA_IFNAME => link.name = text(value),
                k::IFLA_ADDRESS => link.mac = mac(value),
                k::IFLA_MTU => link.mtu = read_u32(value, 0)?,
                k::IFLA_LINK => link.parent = read_u32(value, 0).filter(|&parent| parent != 0),
                k::IFLA_LINK_NETNSID => parent_elsewhere = true,
                k::IFLA_NUM_RX_QUEUES => link.receive_queues = read_u32(value, 0)?,
                k::IFLA_NUM_TX_QUEUES => link.transmit_queues = read_u32(value, 0)?,
                k::IFLA_LINKINFO => {
                    link.vlan = vlan(value);
                    link.macvlan = link_kind(value).is_some_and(|kind| kind == "macvlan");
                }
                _ => {}
            }
        }
        if parent_elsewhere {
            link.parent = None;
        }
        (link.index != 0 && !link.name.is_empty()).then_some(link)
    }
}

/// An attribute in a link's IFLA_LINKINFO.
fn link_information(information: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes::new(information).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The name of the link's driver, for virtual ones, in its IFLA_LINKINFO.
fn link_kind(information: &[u8]) -> Option<String> {
    link_information(information, k::IFLA_INFO_KIND).map(text)
}

/// The tag in a link's IFLA_LINKINFO, where the link is a VLAN interface.
fn vlan(information: &[u8]) -> Option<VlanTag> {
    if link_kind(information)? != "vlan" {
        return None;
    }
    let mut tag = VlanTag { protocol: 0x8100, id: 0 };
    for (kind, value) in Attributes::new(link_information(information, k::IFLA_INFO_DATA)?) {
        match kind {
            k::IFLA_VLAN_ID => tag.id = read_u16(value, 0)?,
            // The one number here that is in network byte order.
            k::IFLA_VLAN_PROTOCOL => tag.protocol = u16::from_be(read_u16(value, 0)?),
            _ => {}
        }
    }
    (1..=4094).contains(&tag.id).then_some(tag)
}

impl InterfaceAddress {
    /// The address that a RTM_NEWADDR message tells of.
    pub fn decode(message: Message<'_>) -> Option<Self> {
        if message.kind != k::RTM_NEWADDR {
            return None;
        }
        let length = read_u8(message.payload, 1)?;
        let link = read_u32(message.payload, 4)?;
        let find = |wanted| {
            Attributes::after(message.payload, k::ADDRESS_FIXED)
                .find(|(kind, _)| *kind == wanted)
                .and_then(|(_, value)| address(value))
        };
        // IFA_ADDRESS is the other end's on point-to-point links; IFA_LOCAL, where there is one, is ours.
        let own = find(k::IFA_LOCAL).or_else(|| find(k::IFA_ADDRESS))?;
        Some(Self { link, prefix: Prefix::new(own, length) })
    }
}

impl NeighbourEntry {
    /// The entry that a message tells of; one that is gone has the state NUD_NONE. Nothing for entries that
    /// only say for whom the host answers (proxy).
    pub fn decode(message: Message<'_>) -> Option<Self> {
        let gone = match message.kind {
            k::RTM_NEWNEIGH => false,
            k::RTM_DELNEIGH => true,
            _ => return None,
        };
        let payload = message.payload;
        if !matches!(read_u8(payload, 0)?, k::AF_INET | k::AF_INET6)
            || read_u8(payload, 10)? & k::NTF_PROXY != 0
        {
            return None; // among the other families are the bridges' forwarding tables
        }
        let mut entry = Self {
            link: read_u32(payload, 4)?,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mac: None,
            state: if gone { k::NUD_NONE } else { read_u16(payload, 8)? },
        };
        let mut found = false;
        for (kind, value) in Attributes::after(payload, k::NEIGHBOUR_FIXED) {
            match kind {
                k::NDA_DST => {
                    entry.address = address(value)?;
                    found = true;
                }
                k::NDA_LLADDR => entry.mac = mac(value).filter(|_| !gone),
                _ => {}
            }
        }
        found.then_some(entry)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::message::{Messages, Request};
    use crate::net::route::{NetworkRoute, Route, local_route};
    use proptest::prelude::*;

    /// The bytes of a link message as the kernel sends it; a tag makes it a VLAN interface on `parent`.
    pub(in crate::net) fn link_bytes(
        index: u32,
        name: &str,
        flags: u32,
        parent: Option<u32>,
        tag: Option<VlanTag>,
    ) -> Vec<u8> {
        let mut fixed = [0; k::LINK_FIXED];
        fixed[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
        let mut request = Request::new(k::RTM_NEWLINK, 0, &fixed)
            .text(k::IFLA_IFNAME, name)
            .number(k::IFLA_MTU, 1500)
            .number(k::IFLA_NUM_TX_QUEUES, 4)
            .number(k::IFLA_NUM_RX_QUEUES, 2)
            .attribute(k::IFLA_ADDRESS, &[2, 0, 0, 0, 0, index as u8]);
        if let Some(parent) = parent {
            request = request.number(k::IFLA_LINK, parent);
        }
        if let Some(tag) = tag {
            request = request.nested(k::IFLA_LINKINFO, |request| {
                request.text(k::IFLA_INFO_KIND, "vlan").nested(k::IFLA_INFO_DATA, |request| {
                    request
                        .attribute(k::IFLA_VLAN_ID, &tag.id.to_ne_bytes())
                        .attribute(2, &[1, 0, 0, 0, 255, 255, 255, 255])
                        .attribute(k::IFLA_VLAN_PROTOCOL, &tag.protocol.to_be_bytes())
                })
            });
        }
        request.finish(1, 0)
    }

    pub(in crate::net) fn only(bytes: &[u8]) -> Message<'_> {
        Messages::new(bytes).next().unwrap()
    }

    #[test]
    fn links_decode() {
        let flags = k::IFF_UP | k::IFF_RUNNING;
        let plain = Link::decode(only(&link_bytes(3, "eth0", flags, None, None))).unwrap();
        assert_eq!((plain.index, plain.name.as_str(), plain.mtu), (3, "eth0", 1500));
        assert_eq!(plain.mac, Some(MacAddress([2, 0, 0, 0, 0, 3])));
        assert_eq!((plain.receive_queues, plain.transmit_queues), (2, 4));
        assert!(plain.up && plain.running && !plain.loopback);
        assert_eq!((plain.parent, plain.vlan), (None, None));
        for protocol in [0x8100, 0x88a8] {
            let tag = VlanTag { protocol, id: 100 };
            let bytes = link_bytes(7, "eth0.100", k::IFF_UP, Some(3), Some(tag));
            let tagged = Link::decode(only(&bytes)).unwrap();
            assert_eq!((tagged.parent, tagged.vlan), (Some(3), Some(tag)));
            assert!(tagged.up && !tagged.running);
        }
        let tag = VlanTag { protocol: 0x8100, id: 4095 };
        let bytes = link_bytes(7, "eth0.4095", k::IFF_UP, Some(3), Some(tag));
        assert_eq!(Link::decode(only(&bytes)).unwrap().vlan, None);
    }

    /// The header and IFLA_LINKINFO of a VLAN interface (id 101, with priority mappings) as a little-endian
    /// kernel sends them; name and parent are put between the two.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_vlan_interface_as_the_kernel_announces_it_decodes() {
        let header = [0, 0, 1, 0, 0x22, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0];
        let between = [
            0x0d, 0, 3, 0, b'e', b't', b'h', b'0', b'.', b'1', b'0', b'1', 0, 0, 0, 0, //
            8, 0, 5, 0, 2, 0, 0, 0,
        ];
        let information = [
            0x50, 0, 0x12, 0, 9, 0, 1, 0, 0x76, 0x6c, 0x61, 0x6e, 0, 0, 0, 0, 0x40, 0, 2, 0, //
            6, 0, 5, 0, 0x81, 0, 0, 0, 6, 0, 1, 0, 0x65, 0, 0, 0, //
            0x0c, 0, 2, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, //
            0x10, 0, 4, 0, 0x0c, 0, 1, 0, 6, 0, 0, 0, 7, 0, 0, 0, //
            0x10, 0, 3, 0, 0x0c, 0, 1, 0, 4, 0, 0, 0, 5, 0, 0, 0,
        ];
        let payload = [&header[..], &between, &information].concat();
        let message = Message { kind: k::RTM_NEWLINK, flags: 0, sequence: 0, payload: &payload };
        let link = Link::decode(message).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.parent), (34, "eth0.101", Some(2)));
        assert_eq!(link.vlan, Some(VlanTag { protocol: 0x8100, id: 101 }));
        assert!(link.up && link.running);
    }

    #[test]
    fn proxy_entries_and_bridge_tables_are_no_neighbours() {
        let mut fixed = [0; k::NEIGHBOUR_FIXED];
        fixed[0] = k::AF_INET;
        fixed[4] = 3;
        fixed[8] = k::NUD_REACHABLE as u8;
        let bytes = |fixed: [u8; k::NEIGHBOUR_FIXED]| {
            Request::new(k::RTM_NEWNEIGH, 0, &fixed)
                .attribute(k::NDA_DST, &[10, 0, 0, 1])
                .attribute(k::NDA_LLADDR, &[2, 0, 0, 0, 0, 1])
                .finish(1, 0)
        };
        if cfg!(target_endian = "little") {
            let entry = NeighbourEntry::decode(only(&bytes(fixed))).unwrap();
            assert_eq!((entry.link, entry.state), (3, k::NUD_REACHABLE));
            assert_eq!(entry.mac, Some(MacAddress([2, 0, 0, 0, 0, 1])));
        }
        fixed[10] = k::NTF_PROXY;
        assert_eq!(NeighbourEntry::decode(only(&bytes(fixed))), None);
        fixed[10] = 0;
        fixed[0] = 7;
        assert_eq!(NeighbourEntry::decode(only(&bytes(fixed))), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(
            kind in prop::sample::select(vec![k::RTM_NEWLINK, k::RTM_NEWADDR, k::RTM_NEWROUTE, k::RTM_NEWNEIGH, k::RTM_DELNEIGH]),
            fixed in prop::collection::vec(any::<u8>(), 0..20),
            family in prop::sample::select(vec![0_u8, 2, 10]),
            attributes in prop::collection::vec((0_u16..40, prop::collection::vec(any::<u8>(), 0..24)), 0..12),
            cut in 0_usize..400,
        ) {
            let mut fixed = fixed;
            if let Some(first) = fixed.first_mut() {
                *first = family;
            }
            let mut request = Request::new(kind, 0, &fixed);
            for (kind, value) in &attributes {
                request = request.attribute(*kind, value);
            }
            let bytes = request.finish(1, 0);
            let payload = bytes.get(16..cut.min(bytes.len())).unwrap_or_default();
            let message = Message { kind, flags: 0, sequence: 0, payload };
            let _ = Link::decode(message);
            let _ = InterfaceAddress::decode(message);
            let _ = Route::decode(message);
            let _ = local_route(message);
            let _ = NetworkRoute::decode(message);
            let _ = NeighbourEntry::decode(message);
        }
    }
}
