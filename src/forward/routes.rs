//! Which route an address takes, the one to the smallest network around it, and where that leads.

use std::net::IpAddr;

use super::NextHop;
use crate::types::Prefix;

/// Routes by their networks. Made as a whole; looking an address up is a binary search.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Routes {
    ipv4: Ranges<u32>,
    ipv6: Ranges<u128>,
}

impl Routes {
    /// The routes to these networks, each under a number that the caller knows it by. Of two to one network the first
    /// counts.
    pub fn new(routes: impl IntoIterator<Item = (Prefix, u32)>) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for (prefix, route) in routes {
            let length = prefix.length;
            match prefix.network() {
                IpAddr::V4(network) => {
                    let first = u32::from(network);
                    let last = first | u32::MAX.checked_shr(length.into()).unwrap_or(0);
                    ipv4.push(Network { first, last, length, route });
                }
                IpAddr::V6(network) => {
                    let first = u128::from(network);
                    let last = first | u128::MAX.checked_shr(length.into()).unwrap_or(0);
                    ipv6.push(Network { first, last, length, route });
                }
            }
        }
        Self {
            ipv4: Ranges::new(ipv4, |last| last.checked_add(1)),
            ipv6: Ranges::new(ipv6, |last| last.checked_add(1)),
        }
    }

    /// The number of the route that leads to `address`.
    #[inline]
    pub fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.ipv4.find(address.into()),
            IpAddr::V6(address) => self.ipv6.find(address.into()),
        }
    }
}

/// The way that a route to clients leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To all of them alike: through a gateway, or nowhere.
    Through(NextHop),
    /// To each of them straight: they are neighbours.
    OnLink,
}

/// A network and its route.
struct Network<A> {
    first: A,
    last: A,
    length: u8,
    route: u32,
}

/// Where one route ends and the next begins: networks lie in each other or apart, so that every address between two
/// such places takes the same route.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ranges<A>(Vec<(A, Option<u32>)>);

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<A: Copy + Ord> Ranges<A> {
    fn new(mut networks: Vec<Network<A>>, after: impl Fn(A) -> Option<A>) -> Self {
        // Those around before those inside; stable, so that the first of equals stays first.
        networks.sort_by_key(|network| (network.first, network.length));
        networks.dedup_by_key(|network| (network.first, network.length));
        let mut ranges = Self::default();
        let mut around: Vec<Network<A>> = Vec::new();
        for network in networks {
            while around.last().is_some_and(|outer| outer.last < network.first) {
                ranges.end(&mut around, &after);
            }
            ranges.begin(network.first, Some(network.route));
            around.push(network);
        }
        while !around.is_empty() {
            ranges.end(&mut around, &after);
        }
        ranges
    }

    /// Leaves the innermost network for the one around it.
    fn end(&mut self, around: &mut Vec<Network<A>>, after: impl Fn(A) -> Option<A>) {
        let Some(left) = around.pop() else { return };
        if let Some(next) = after(left.last) {
            self.begin(next, around.last().map(|outer| outer.route));
        }
    }

    fn begin(&mut self, first: A, route: Option<u32>) {
        // What began at the same place has no address of its own.
        self.0.pop_if(|(begun, _)| *begun == first);
        self.0.push((first, route));
    }

    #[inline]
    fn find(&self, address: A) -> Option<u32> {
        let behind = self.0.partition_point(|(first, _)| *first <= address);
        self.0.get(behind.checked_sub(1)?)?.1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_network_around_counts() {
        let routes = [
            ("0.0.0.0/0", 0),
            ("10.0.0.0/8", 1),
            ("10.88.1.0/24", 2),
            ("10.88.0.0/16", 3),
            ("10.88.1.7/32", 4),
            ("255.255.255.0/24", 5),
            ("10.88.1.0/24", 6),
            ("2001:db8::/32", 7),
        ];
        let routes = Routes::new(routes.map(|(prefix, route)| (prefix.parse().unwrap(), route)));
        for (address, expected) in [
            ("9.255.255.255", Some(0)),
            ("10.0.0.0", Some(1)),
            ("10.88.0.255", Some(3)),
            ("10.88.1.0", Some(2)),
            ("10.88.1.6", Some(2)),
            ("10.88.1.7", Some(4)),
            ("10.88.1.8", Some(2)),
            ("10.88.2.0", Some(3)),
            ("10.255.255.255", Some(1)),
            ("11.0.0.0", Some(0)),
            ("255.255.255.255", Some(5)),
            ("2001:db8:ffff::", Some(7)),
            ("2001:db9::", None),
        ] {
            assert_eq!(routes.find(address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(Routes::default().find([10, 0, 0, 1].into()), None);
    }

    proptest! {
        #[test]
        fn routes_are_those_of_a_search_through_all(
            networks in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..40),
            others in prop::collection::vec(any::<u32>(), 0..10),
        ) {
            // Few bits, so that networks lie in each other.
            let spread = |bits: u32| bits & 0xc000_0c07 | (bits >> 3) & 0x0000_c000;
            let networks: Vec<(Prefix, u32)> = networks
                .into_iter()
                .zip(0..)
                .map(|((bits, length), route)| (Prefix::new(IpAddr::from(spread(bits).to_be_bytes()), length), route))
                .collect();
            let routes = Routes::new(networks.iter().copied());
            let ends = networks.iter().filter_map(|(prefix, _)| match prefix.address {
                IpAddr::V4(address) => Some(u32::from(address)),
                IpAddr::V6(_) => None,
            });
            let near = ends.flat_map(|bits| [bits, bits.wrapping_add(1), bits.wrapping_sub(1)]);
            for bits in near.chain(others) {
                let address = IpAddr::from(bits.to_be_bytes());
                let around = networks.iter().filter(|(prefix, _)| prefix.contains(address));
                let expected = around.max_by_key(|(prefix, route)| (prefix.length, std::cmp::Reverse(*route)));
                prop_assert_eq!(routes.find(address), expected.map(|(_, route)| *route), "{}", address);
            }
        }
    }
}
