//! Which service a packet is for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{Protocol, ServiceKey};

use super::Service;

/// The FTP control port: its service also takes data connections (`ip_vs_service_find`).
pub const FTP_PORT: u16 = 21;
/// The FTP data port: active data connections come from it.
pub const FTP_DATA_PORT: u16 = 20;
/// First port that needs no privilege to listen on (the default of `net.ipv4.ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// All services of a configuration.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    by_key: HashMap<ServiceKey, Arc<Service>>,
    addresses: HashMap<IpAddr, usize>,
    ftp_services: usize,
    port_zero_services: usize,
    mark_services: usize,
}

impl ServiceTable {
    /// Adds a service, or takes the place of the one with its key.
    pub fn insert(&mut self, service: Arc<Service>) {
        self.remove(&service.key);
        self.count(&service.key, |count| count + 1);
        self.by_key.insert(service.key, service);
    }

    /// Removes and returns a service.
    pub fn remove(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let service = self.by_key.remove(key)?;
        self.count(key, |count| count - 1);
        Some(service)
    }

    fn count(&mut self, key: &ServiceKey, change: impl Fn(usize) -> usize) {
        if let ServiceKey::Address { address, .. } = key {
            let services = self.addresses.entry(*address).or_default();
            *services = change(*services);
            if *services == 0 {
                self.addresses.remove(address);
            }
        }
        match key {
            ServiceKey::Address { protocol: Protocol::Tcp, port: FTP_PORT, .. } => {
                self.ftp_services = change(self.ftp_services);
            }
            ServiceKey::Address { port: 0, .. } => self.port_zero_services = change(self.port_zero_services),
            ServiceKey::Mark { .. } => self.mark_services = change(self.mark_services),
            ServiceKey::Address { .. } => (),
        }
    }

    /// The service with just this key.
    pub fn get(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_key.get(key)
    }

    /// Whether there is any service by mark: otherwise nobody needs to know a packet's.
    pub fn has_marks(&self) -> bool {
        self.mark_services > 0
    }

    /// Whether `address` is a virtual address, of whatever service.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// The service that takes a packet to `address` and `port`, in the kernel's order (`ip_vs_service_find`):
    /// the exact port, then an FTP service for what may be its data, then port 0.
    pub fn find(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<&Arc<Service>> {
        let of = |port| self.by_key.get(&ServiceKey::Address { protocol, address, port });
        if let Some(service) = of(port) {
            return Some(service);
        }
        let may_be_ftp_data = protocol == Protocol::Tcp
            && self.ftp_services > 0
            && (port == FTP_DATA_PORT || port >= FIRST_UNPRIVILEGED_PORT);
        if may_be_ftp_data && let Some(service) = of(FTP_PORT) {
            return Some(service);
        }
        if self.port_zero_services > 0 { of(0) } else { None }
    }

    /// All services, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.values()
    }

    /// Number of services.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::scheduler;
    use crate::service::{Chooser, ServiceId};

    fn service(protocol: Protocol, port: u16) -> Arc<Service> {
        let key = ServiceKey::Address { protocol, address: "10.0.0.1".parse().unwrap(), port };
        let chooser = Chooser::new(scheduler::create("rr", 0, crate::types::HashKey::new([5, 6])).unwrap());
        let chooser = Arc::new(Mutex::new(chooser));
        Arc::new(Service {
            id: ServiceId(u32::from(port)),
            key,
            chooser,
            persistence: None,
            one_packet: false,
        })
    }

    #[test]
    fn the_kernels_order_exact_then_ftp_then_port_zero() {
        let mut table = ServiceTable::default();
        for (protocol, port) in
            [(Protocol::Tcp, 80), (Protocol::Tcp, 21), (Protocol::Tcp, 0), (Protocol::Udp, 53)]
        {
            table.insert(service(protocol, port));
        }
        let found = |table: &ServiceTable, protocol, port| {
            table.find(protocol, "10.0.0.1".parse().unwrap(), port).map(|service| service.id.0)
        };
        let rows = [
            (Protocol::Tcp, 80, Some(80)),
            (Protocol::Tcp, 21, Some(21)),
            (Protocol::Tcp, 20, Some(21)),
            (Protocol::Tcp, 1024, Some(21)),
            (Protocol::Tcp, 1023, Some(0)),
            (Protocol::Udp, 53, Some(53)),
            (Protocol::Udp, 5353, None),
        ];
        for (protocol, port, expected) in rows {
            assert_eq!(found(&table, protocol, port), expected, "{protocol} {port}");
        }
        assert!(table.find(Protocol::Tcp, "10.0.0.2".parse().unwrap(), 80).is_none());
        let key = service(Protocol::Tcp, 21).key;
        table.remove(&key);
        assert_eq!(found(&table, Protocol::Tcp, 1024), Some(0));
    }
}
