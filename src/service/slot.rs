//! Slots: what connections share with the real server that they go to.

use std::net::{IpAddr, Ipv6Addr};

use crate::sys::memory::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::types::{ForwardingMethod, Tunnel, TunnelChecksum, TunnelKind};

use super::{RealServer, ServiceId};

/// Most real servers at a time, over all services, those whose connections outlive them included.
pub const MAX_REAL_SERVERS: usize = 65_536;

const _: () = assert!(MAX_REAL_SERVERS <= 1 << 16, "a connection has 16 bits for its real server");

/// Names a real server of one service for as long as it, or a connection to it, lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServerId(pub u32);

impl ServerId {
    /// As an index of per-server tables.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The shared state of one real server. All plain atomics: each is read and changed on its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ServerSlot {
    weight: AtomicU32,
    last_weight: AtomicU32,
    active: AtomicU32,
    inactive: AtomicU32,
    persistent: AtomicU32,
    available: AtomicU32,
    overloaded: AtomicU32,
    upper_threshold: AtomicU32,
    lower_threshold: AtomicU32,
    service: AtomicU32,
    /// The forwarding method, and how packets are wrapped where it is tunnelling: see [`ServerSlot::set_method`].
    method: AtomicU32,
    /// Set when the address is IPv4's; the port.
    endpoint: AtomicU32,
    address: [AtomicU64; 2],
}

const ENDPOINT_IPV4: u32 = 1 << 16;

/// A count as its readers see it. Two workers that move one connection to and fro, each of them once it has changed the
/// connection's state, may count in the other order: for that moment a count is one below zero, as a wrapped number.
#[inline]
const fn as_count(stored: u32) -> u32 {
    if stored.cast_signed() < 0 { 0 } else { stored }
}

impl ServerSlot {
    /// Scheduling weight; 0 takes no new connections.
    #[inline]
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// The last weight above 0 since the real server was added; 0 where there was none.
    pub fn last_weight(&self) -> u32 {
        self.last_weight.load(Ordering::Relaxed)
    }

    /// Sets the weight. The service's scheduler is to be told.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
        if weight != 0 {
            self.last_weight.store(weight, Ordering::Relaxed);
        }
    }

    /// Connections in an active state (`ip_vs_proto_tcp.c`: tcp_state_active_table).
    #[inline]
    pub fn active(&self) -> u32 {
        as_count(self.active.load(Ordering::Relaxed))
    }

    /// The other connections.
    #[inline]
    pub fn inactive(&self) -> u32 {
        as_count(self.inactive.load(Ordering::Relaxed))
    }

    /// Connection templates.
    #[inline]
    pub fn persistent(&self) -> u32 {
        self.persistent.load(Ordering::Relaxed)
    }

    /// What the load-sensitive schedulers compare: an active connection weighs as much as 256 inactive ones
    /// (`ip_vs_dest_conn_overhead`).
    #[inline]
    pub fn overhead(&self) -> u64 {
        (u64::from(self.active()) << 8) + u64::from(self.inactive())
    }

    /// Whether the real server is configured; false once it was removed and only connections remember it.
    #[inline]
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire) != 0
    }

    /// Marks the real server as configured or removed.
    pub fn set_available(&self, available: bool) {
        self.available.store(u32::from(available), Ordering::Release);
    }

    /// Whether the upper threshold was reached and the lower not yet gone below.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed) != 0
    }

    /// Connection counts at which scheduling stops (`-x`) and starts again (`-y`); 0 for none.
    pub fn thresholds(&self) -> (u32, u32) {
        (self.upper_threshold.load(Ordering::Relaxed), self.lower_threshold.load(Ordering::Relaxed))
    }

    /// Sets the thresholds; taking effect with the next connection, except that no upper threshold ends an
    /// overload at once (`__ip_vs_update_dest`).
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        if upper == 0 || upper > self.upper_threshold.load(Ordering::Relaxed) {
            self.overloaded.store(0, Ordering::Relaxed);
        }
        self.upper_threshold.store(upper, Ordering::Relaxed);
        self.lower_threshold.store(lower, Ordering::Relaxed);
    }

    /// The service that this real server belongs to.
    #[inline]
    pub fn service(&self) -> ServiceId {
        ServiceId(self.service.load(Ordering::Relaxed))
    }

    /// The forwarding method that new connections take.
    pub fn method(&self) -> ForwardingMethod {
        match self.method.load(Ordering::Relaxed) & 0xff {
            0 => ForwardingMethod::Masquerading,
            1 => ForwardingMethod::Local,
            2 => ForwardingMethod::Tunnel,
            _ => ForwardingMethod::DirectRouting,
        }
    }

    /// Sets the forwarding method of new connections, and how packets of those that are tunnelled are wrapped from now
    /// on. Both are one word, so that no packet sees half of a change.
    pub fn set_method(&self, method: ForwardingMethod, tunnel: Tunnel) {
        let kind = match tunnel.kind {
            TunnelKind::Ipip => 0,
            TunnelKind::Gue => 1,
            TunnelKind::Gre => 2,
        };
        let checksum = match tunnel.checksum {
            TunnelChecksum::None => 0,
            TunnelChecksum::Checksum => 1,
            TunnelChecksum::Remote => 2,
        };
        let word = u32::from(tunnel.port) << 16 | checksum << 12 | kind << 8 | method as u32;
        self.method.store(word, Ordering::Relaxed);
    }

    /// How packets of tunnelled connections are wrapped.
    pub fn tunnel(&self) -> Tunnel {
        let word = self.method.load(Ordering::Relaxed);
        Tunnel {
            kind: match word >> 8 & 0xf {
                0 => TunnelKind::Ipip,
                1 => TunnelKind::Gue,
                _ => TunnelKind::Gre,
            },
            port: (word >> 16) as u16,
            checksum: match word >> 12 & 0xf {
                0 => TunnelChecksum::None,
                1 => TunnelChecksum::Checksum,
                _ => TunnelChecksum::Remote,
            },
        }
    }

    /// Says where the real server is, before anybody is sent there: it never changes while the slot is in use.
    pub fn set_endpoint(&self, address: IpAddr, port: u16) {
        let (bits, family) = match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)), ENDPOINT_IPV4),
            IpAddr::V6(address) => (u128::from(address), 0),
        };
        self.address[0].store((bits >> 64) as u64, Ordering::Relaxed);
        self.address[1].store(bits as u64, Ordering::Relaxed);
        self.endpoint.store(family | u32::from(port), Ordering::Relaxed);
    }

    /// The real server of this slot, `id`, as its service's scheduler would list it.
    pub fn real_server(&self, id: ServerId) -> RealServer {
        let endpoint = self.endpoint.load(Ordering::Relaxed);
        let [high, low] = [0, 1].map(|word: usize| self.address[word].load(Ordering::Relaxed));
        let address = if endpoint & ENDPOINT_IPV4 != 0 {
            IpAddr::from((low as u32).to_be_bytes())
        } else {
            Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into()
        };
        RealServer { id, address, port: endpoint as u16, method: self.method() }
    }

    /// Prepares the slot for a new real server of `service`.
    pub fn assign(&self, service: ServiceId) {
        for count in [&self.active, &self.inactive, &self.persistent, &self.overloaded] {
            count.store(0, Ordering::Relaxed);
        }
        self.reassign(service);
    }

    /// Adds the slot's removed real server again, with its connections, under another number of its service.
    pub fn reassign(&self, service: ServiceId) {
        self.last_weight.store(0, Ordering::Relaxed);
        self.service.store(service.0, Ordering::Relaxed);
    }

    /// Connections of either kind: while there are any, the slot cannot be given to another real server.
    pub fn connections(&self) -> u32 {
        // Summed before it is read as a count: what one of the two lacks, the other has too much.
        let (active, inactive) = (self.active.load(Ordering::Relaxed), self.inactive.load(Ordering::Relaxed));
        as_count(active.wrapping_add(inactive)).saturating_add(self.persistent())
    }

    /// Counts a new connection, which starts inactive; raises the overload flag at the upper threshold
    /// (`ip_vs_bind_dest`).
    pub fn connection_added(&self) {
        let inactive = self.inactive.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let upper = self.upper_threshold.load(Ordering::Relaxed);
        if upper != 0 && as_count(inactive.wrapping_add(self.active.load(Ordering::Relaxed))) >= upper {
            self.overloaded.store(1, Ordering::Relaxed);
        }
    }

    /// Moves a connection between the two counts.
    #[inline]
    pub fn connection_moved(&self, to_active: bool) {
        let (up, down) =
            if to_active { (&self.active, &self.inactive) } else { (&self.inactive, &self.active) };
        up.fetch_add(1, Ordering::Relaxed);
        down.fetch_sub(1, Ordering::Relaxed);
    }

    /// Forgets a connection; ends an overload once below the lower threshold, or below three quarters of the
    /// upper where there is no lower (`ip_vs_dest_totalconns`, `ip_vs_unbind_dest`).
    pub fn connection_removed(&self, was_active: bool) {
        let count = if was_active { &self.active } else { &self.inactive };
        count.fetch_sub(1, Ordering::Relaxed);
        self.relieve();
    }

    /// Counts a new connection template, which is no load.
    pub fn template_added(&self) {
        self.persistent.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets a connection template (`ip_vs_unbind_dest`).
    pub fn template_removed(&self) {
        self.persistent.fetch_sub(1, Ordering::Relaxed);
        self.relieve();
    }

    /// Ends an overload that is over.
    fn relieve(&self) {
        if !self.is_overloaded() {
            return;
        }
        let (active, inactive) = (self.active.load(Ordering::Relaxed), self.inactive.load(Ordering::Relaxed));
        let total = u64::from(as_count(active.wrapping_add(inactive)));
        let (upper, lower) = self.thresholds();
        let relieved = match (upper, lower) {
            (_, 1..) => total < u64::from(lower),
            (1.., 0) => total * 4 < u64::from(upper) * 3,
            (0, 0) => true,
        };
        if relieved {
            self.overloaded.store(0, Ordering::Relaxed);
        }
    }
}

/// All slots: a fixed array, indexed by [`ServerId`].
#[derive(Debug)]
pub struct ServerSlots(Box<[ServerSlot]>);

impl ServerSlots {
    /// `count` empty slots, at most [`MAX_REAL_SERVERS`].
    pub fn new(count: usize) -> Self {
        Self((0..count.min(MAX_REAL_SERVERS)).map(|_| ServerSlot::default()).collect())
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slot of `id`, which must have come from these slots' allocation.
    ///
    /// # Panics
    /// For an id beyond the table: an error in the program.
    #[inline]
    pub fn get(&self, id: ServerId) -> &ServerSlot {
        &self.0[id.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_starts_at_the_upper_threshold_and_ends_below_the_lower() {
        // {upper, lower, connections at which it ends}: with no lower threshold, below 3/4 of the upper.
        for (upper, lower, ends_at) in [(4, 2, 1), (4, 0, 2), (8, 0, 5), (3, 1, 0)] {
            let slot = ServerSlot::default();
            slot.set_thresholds(upper, lower);
            for count in 1..=upper {
                slot.connection_added();
                assert_eq!(slot.is_overloaded(), count == upper, "{upper} {lower}: {count} connections");
            }
            let mut left = upper;
            while slot.is_overloaded() {
                slot.connection_removed(false);
                left -= 1;
            }
            assert_eq!(left, ends_at, "{upper} {lower}");
        }
    }

    #[test]
    fn the_last_weight_above_0_is_known_until_the_server_is_added_again() {
        let slot = ServerSlot::default();
        slot.assign(ServiceId(1));
        for (weight, last) in [(0, 0), (3, 3), (0, 3), (5, 5), (0, 5)] {
            slot.set_weight(weight);
            assert_eq!((slot.weight(), slot.last_weight()), (weight, last));
        }
        slot.reassign(ServiceId(2));
        slot.set_weight(0);
        assert_eq!(slot.last_weight(), 0);
    }

    #[test]
    fn a_slot_knows_where_its_real_server_is() {
        let slot = ServerSlot::default();
        for (address, port) in [("10.88.2.11", 80), ("fd88::11", 65535), ("::ffff:10.0.0.1", 0)] {
            let address = address.parse().unwrap();
            slot.set_endpoint(address, port);
            slot.set_method(ForwardingMethod::DirectRouting, Tunnel::IPIP);
            let method = ForwardingMethod::DirectRouting;
            assert_eq!(slot.real_server(ServerId(7)), RealServer { id: ServerId(7), address, port, method });
        }
        assert_eq!(size_of::<ServerSlot>(), 64, "a cache line");
    }

    #[test]
    fn templates_keep_a_slot_in_use_but_are_no_load() {
        let slot = ServerSlot::default();
        slot.set_thresholds(1, 0);
        slot.template_added();
        assert!(!slot.is_overloaded());
        assert_eq!((slot.persistent(), slot.overhead(), slot.connections()), (1, 0, 1));
        slot.template_removed();
        assert_eq!(slot.connections(), 0);
    }

    #[test]
    fn connections_count_once_wherever_they_move() {
        let slot = ServerSlot::default();
        slot.connection_added();
        assert_eq!((slot.active(), slot.inactive(), slot.overhead()), (0, 1, 1));
        slot.connection_moved(true);
        assert_eq!((slot.active(), slot.inactive(), slot.overhead()), (1, 0, 256));
        slot.connection_removed(true);
        assert_eq!(slot.connections(), 0);
    }

    #[test]
    fn moves_counted_in_the_other_order_are_no_thousand_million_connections() {
        let slot = ServerSlot::default();
        slot.set_thresholds(10, 5);
        slot.connection_added();
        slot.connection_moved(false);
        assert_eq!((slot.active(), slot.connections()), (0, 1));
        assert!(slot.overhead() < 10, "it would get no connection from wlc");
        slot.connection_added();
        assert!(!slot.is_overloaded());
        slot.connection_moved(true);
        slot.connection_removed(false);
        assert_eq!((slot.active(), slot.inactive(), slot.connections()), (0, 1, 1));
    }
}
