//! The order of listings: `ipvsadm`'s, with its quirk.
//!
//! Numbers of 32 bits are compared by the sign of their difference as a signed number, so that two that lie more than
//! 2^31 apart come the wrong way round: 192.168.0.1 before 10.0.0.1. That is no order at all - three addresses may
//! each come before the next - and what comes out depends on how one sorts. `ipvsadm` leaves that to the C library,
//! which merges halves; so does this.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::{ServerRow, ServiceRow};
use crate::types::{Family, ServiceKey};

/// Puts services in order: by mark, family, protocol, address, port; and the servers of each.
pub fn sort_services(services: &mut Vec<ServiceRow>) {
    merge_sort(services, &|a, b| compare_services(&a.key, &b.key));
    for service in services {
        sort_servers(&mut service.servers);
    }
}

/// Puts servers in order: by address and port.
pub fn sort_servers(servers: &mut Vec<ServerRow>) {
    merge_sort(servers, &|a, b| compare_addresses(a.address, b.address).then(a.port.cmp(&b.port)));
}

fn compare_services(a: &ServiceKey, b: &ServiceKey) -> Ordering {
    let mark = |key: &ServiceKey| match *key {
        ServiceKey::Mark { mark, .. } => mark,
        ServiceKey::Address { .. } => 0,
    };
    wrapped(mark(a), mark(b)).then(a.family().cmp(&b.family())).then_with(|| match (a, b) {
        (
            ServiceKey::Address { protocol, address, port },
            ServiceKey::Address { protocol: other_protocol, address: other_address, port: other_port },
        ) => protocol
            .number()
            .cmp(&other_protocol.number())
            .then(compare_addresses(*address, *other_address))
            .then(port.cmp(other_port)),
        _ => Ordering::Equal,
    })
}

fn compare_addresses(a: IpAddr, b: IpAddr) -> Ordering {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => wrapped(a.into(), b.into()),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.cmp(&b),
        _ => Family::of(a).cmp(&Family::of(b)),
    }
}

fn wrapped(a: u32, b: u32) -> Ordering {
    (a.wrapping_sub(b) as i32).cmp(&0)
}

/// Sorts by halving and merging, the smaller half first, keeping equals in order. The standard library's sorting may
/// panic when the comparison is no order.
fn merge_sort<T>(items: &mut Vec<T>, compare: &impl Fn(&T, &T) -> Ordering) {
    if items.len() < 2 {
        return;
    }
    let mut right = items.split_off(items.len() / 2);
    let mut left = std::mem::take(items);
    merge_sort(&mut left, compare);
    merge_sort(&mut right, compare);
    items.reserve(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let smaller = if compare(a, b) == Ordering::Greater { &mut right } else { &mut left };
        items.extend(smaller.next());
    }
    items.extend(left);
    items.extend(right);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_far_apart_come_as_ipvsadm_sorts_them() {
        // What ipvsadm 1.31 made of this very list.
        let mut items = ["192.168.0.1", "10.0.0.1", "127.0.0.1", "255.255.255.254", "128.0.0.1"]
            .map(|text| text.parse::<IpAddr>().unwrap())
            .to_vec();
        merge_sort(&mut items, &|a, b| compare_addresses(*a, *b));
        let got: Vec<String> = items.iter().map(IpAddr::to_string).collect();
        assert_eq!(got, ["127.0.0.1", "128.0.0.1", "192.168.0.1", "255.255.255.254", "10.0.0.1"]);
    }

    #[test]
    fn equals_keep_their_order() {
        let mut items: Vec<(u8, usize)> = (0..100_u8).map(|n| (n % 3, usize::from(n))).collect();
        merge_sort(&mut items, &|a, b| a.0.cmp(&b.0));
        assert!(items.is_sorted());
    }
}
