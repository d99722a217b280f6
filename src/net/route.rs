//! Routes out of the kernel's messages. Total, as the rest of decoding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::constants as k;
use super::decode::address;
use super::message::{Attributes, Message, read_u8, read_u16, read_u32};
use crate::types::Prefix;

/// The kernel's route to one destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// Out of an interface.
    Via {
        /// The interface's index.
        link: u32,
        /// The gateway, where the destination is not on the link itself.
        gateway: Option<IpAddr>,
        /// The source address that the host would use.
        source: Option<IpAddr>,
        /// The route's own MTU in bytes, where it has one.
        mtu: Option<u32>,
    },
    /// The host itself.
    Local,
    /// None, or one that says so: unreachable, prohibit, blackhole, broadcast, multicast.
    None,
}

/// A route of the table "main", to a whole network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NetworkRoute {
    /// The network.
    pub prefix: Prefix,
    /// Of several to one network, the kernel takes the one with the least.
    pub metric: u32,
    /// The way there. Of a multipath route, the first one.
    pub route: Route,
}

/// The network that a RTM_NEWROUTE message of the table "local" declares the host's own.
pub(super) fn local_route(message: Message<'_>) -> Option<Prefix> {
    let is_local = message.kind == k::RTM_NEWROUTE
        && read_u8(message.payload, 4)? == k::RT_TABLE_LOCAL
        && read_u8(message.payload, 7)? == k::RTN_LOCAL;
    if is_local { destination(message.payload) } else { None }
}

/// The network that a route message is about.
fn destination(payload: &[u8]) -> Option<Prefix> {
    let unspecified = match read_u8(payload, 0)? {
        k::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        k::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let network = Attributes::after(payload, k::ROUTE_FIXED)
        .find(|(kind, _)| *kind == k::RTA_DST)
        .and_then(|(_, value)| address(value))
        .unwrap_or(unspecified);
    Some(Prefix::new(network, read_u8(payload, 1)?))
}

impl NetworkRoute {
    /// The route that a RTM_NEWROUTE message of the table "main" tells of. Nothing for one that is for one type of
    /// service or for some senders only, that is out of order, or that sends the kernel to look elsewhere.
    pub(super) fn decode(message: Message<'_>) -> Option<Self> {
        let payload = message.payload;
        let unusable = message.kind != k::RTM_NEWROUTE
            || [read_u8(payload, 2)?, read_u8(payload, 3)?] != [0; 2]
            || read_u8(payload, 4)? != k::RT_TABLE_MAIN
            || read_u8(payload, 7)? == k::RTN_THROW
            || read_u32(payload, 8)? as u8 & k::RTNH_F_DEAD != 0;
        if unusable {
            return None;
        }
        let metric = Attributes::after(payload, k::ROUTE_FIXED)
            .find(|(kind, _)| *kind == k::RTA_PRIORITY)
            .and_then(|(_, value)| read_u32(value, 0));
        let (prefix, route) = (destination(payload)?, Route::decode(message)?);
        Some(Self { prefix, metric: metric.unwrap_or(0), route })
    }
}

impl Route {
    /// The route that the kernel gives in answer to a look-up of one destination.
    pub fn decode(message: Message<'_>) -> Option<Self> {
        if message.kind != k::RTM_NEWROUTE {
            return None;
        }
        match read_u8(message.payload, 7)? {
            k::RTN_LOCAL => return Some(Self::Local),
            k::RTN_UNICAST => {}
            _ => return Some(Self::None),
        }
        let (mut link, mut gateway, mut source, mut mtu) = (None, None, None, None);
        for (kind, value) in Attributes::after(message.payload, k::ROUTE_FIXED) {
            match kind {
                k::RTA_OIF => link = read_u32(value, 0),
                k::RTA_GATEWAY | k::RTA_VIA => gateway = gateway_in(kind, value),
                k::RTA_MULTIPATH => {
                    if let Some((first, through)) = first_way(value) {
                        (link, gateway) = (Some(first), through);
                    }
                }
                k::RTA_PREFSRC => source = address(value),
                k::RTA_METRICS => {
                    mtu = Attributes::new(value)
                        .find(|(kind, _)| *kind == k::RTAX_MTU)
                        .and_then(|(_, value)| read_u32(value, 0))
                        .filter(|&mtu| mtu != 0);
                }
                _ => {}
            }
        }
        let gateway = gateway.filter(|gateway| !gateway.is_unspecified());
        Some(link.map_or(Self::None, |link| Self::Via { link, gateway, source, mtu }))
    }
}

/// The gateway that an attribute of a route names.
fn gateway_in(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        k::RTA_GATEWAY => address(value),
        // struct rtvia: a family, then an address of it; an IPv6 gateway of an IPv4 route.
        k::RTA_VIA => value.get(2..).and_then(address),
        _ => None,
    }
}

/// The interface and the gateway of the first of several ways that is in order.
fn first_way(mut ways: &[u8]) -> Option<(u32, Option<IpAddr>)> {
    while let Some(length) = read_u16(ways, 0).map(usize::from) {
        let way = ways.get(..length).filter(|way| way.len() >= k::NEXTHOP_FIXED)?;
        if read_u8(way, 2)? & k::RTNH_F_DEAD == 0 {
            let mut attributes = Attributes::after(way, k::NEXTHOP_FIXED);
            return Some((read_u32(way, 4)?, attributes.find_map(|(kind, value)| gateway_in(kind, value))));
        }
        ways = ways.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::decode::tests::only;
    use crate::net::message::Request;

    #[test]
    fn routes_decode() {
        let fixed = |kind| [k::AF_INET, 32, 0, 0, k::RT_TABLE_MAIN, 0, 0, kind, 0, 0, 0, 0];
        let bytes = Request::new(k::RTM_NEWROUTE, 0, &fixed(k::RTN_UNICAST))
            .number(k::RTA_OIF, 3)
            .attribute(k::RTA_GATEWAY, &[10, 0, 0, 1])
            .attribute(k::RTA_PREFSRC, &[10, 0, 0, 2])
            .nested(k::RTA_METRICS, |request| request.number(k::RTAX_MTU, 1400))
            .finish(1, 0);
        let expected = Route::Via {
            link: 3,
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: Some("10.0.0.2".parse().unwrap()),
            mtu: Some(1400),
        };
        assert_eq!(Route::decode(only(&bytes)), Some(expected));
        let mut via = vec![k::AF_INET6, 0];
        via.extend("fe80::1".parse::<Ipv6Addr>().unwrap().octets());
        let bytes = Request::new(k::RTM_NEWROUTE, 0, &fixed(k::RTN_UNICAST))
            .number(k::RTA_OIF, 3)
            .attribute(k::RTA_VIA, &via)
            .finish(1, 0);
        let gateway = Some("fe80::1".parse().unwrap());
        let expected = Route::Via { link: 3, gateway, source: None, mtu: None };
        assert_eq!(Route::decode(only(&bytes)), Some(expected));
        for (kind, expected) in [(k::RTN_LOCAL, Route::Local), (7, Route::None), (5, Route::None)] {
            let bytes = Request::new(k::RTM_NEWROUTE, 0, &fixed(kind)).number(k::RTA_OIF, 3).finish(1, 0);
            assert_eq!(Route::decode(only(&bytes)), Some(expected));
        }
    }

    #[test]
    fn routes_to_networks_decode() {
        let fixed = |length, table, kind, flags: u32| {
            let mut fixed = [k::AF_INET, length, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
            fixed[8..].copy_from_slice(&flags.to_ne_bytes());
            fixed
        };
        let decode = |request: Request| NetworkRoute::decode(only(&request.finish(1, 0)));
        let new = |length, table, kind, flags| {
            Request::new(k::RTM_NEWROUTE, 0, &fixed(length, table, kind, flags)).number(k::RTA_OIF, 3)
        };
        let via = |gateway| Route::Via { link: 3, gateway, source: None, mtu: None };
        let plain = new(8, k::RT_TABLE_MAIN, k::RTN_UNICAST, 0)
            .attribute(k::RTA_DST, &[10, 0, 0, 0])
            .number(k::RTA_PRIORITY, 100);
        let expected = NetworkRoute { prefix: "10.0.0.0/8".parse().unwrap(), metric: 100, route: via(None) };
        assert_eq!(decode(plain), Some(expected));
        let through = new(0, k::RT_TABLE_MAIN, k::RTN_UNICAST, 0).attribute(k::RTA_GATEWAY, &[10, 0, 0, 1]);
        let gateway = Some("10.0.0.1".parse().unwrap());
        let expected = NetworkRoute { prefix: "0.0.0.0/0".parse().unwrap(), metric: 0, route: via(gateway) };
        assert_eq!(decode(through), Some(expected));
        let blackhole = decode(new(0, k::RT_TABLE_MAIN, 6, 0)).unwrap();
        assert_eq!(blackhole.route, Route::None);
        for (what, request) in [
            ("another table", new(0, 100, k::RTN_UNICAST, 0)),
            ("throw", new(0, k::RT_TABLE_MAIN, k::RTN_THROW, 0)),
            ("dead", new(0, k::RT_TABLE_MAIN, k::RTN_UNICAST, u32::from(k::RTNH_F_DEAD))),
        ] {
            assert_eq!(decode(request), None, "{what}");
        }
        // Two ways, the first of which is dead.
        let way = |flags: u8, link: u32, gateway: [u8; 4]| {
            let mut way = 16_u16.to_ne_bytes().to_vec();
            way.extend([flags, 0]);
            way.extend(link.to_ne_bytes());
            way.extend(8_u16.to_ne_bytes());
            way.extend(k::RTA_GATEWAY.to_ne_bytes());
            way.extend(gateway);
            way
        };
        let ways = [way(k::RTNH_F_DEAD, 9, [10, 0, 0, 9]), way(0, 4, [10, 0, 0, 4])].concat();
        let several = Request::new(k::RTM_NEWROUTE, 0, &fixed(0, k::RT_TABLE_MAIN, k::RTN_UNICAST, 0))
            .attribute(k::RTA_MULTIPATH, &ways);
        let gateway = Some("10.0.0.4".parse().unwrap());
        let expected = Route::Via { link: 4, gateway, source: None, mtu: None };
        assert_eq!(decode(several).unwrap().route, expected);
    }
}
