//! Masqueraded real servers: what of the packets that they send is the director's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{ServerEntry, State};
use crate::director::Masqueraded;
use crate::types::{ForwardingMethod, Protocol, ServiceKey};

/// The protocols that a service takes.
fn protocols(key: ServiceKey) -> impl Iterator<Item = Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter().filter(move |one| match key {
        ServiceKey::Address { protocol, .. } => protocol == *one,
        ServiceKey::Mark { .. } => true,
    })
}

impl State {
    /// The configured real servers, with their services' keys and whether those take data connections.
    fn servers(&self) -> impl Iterator<Item = (&ServerEntry, ServiceKey, bool)> {
        self.services.values().flat_map(|service| {
            service.servers.iter().map(|server| (server, service.service.key, service.takes_data))
        })
    }

    /// What the director must get to see of what real servers send: the answers of masqueraded ones, and of removed ones
    /// that have connections. Protocol, real server's address, source port; port 0 stands for all.
    pub fn steered_by_source(&self) -> BTreeSet<(Protocol, IpAddr, u16)> {
        let removed = self.trash.values().filter_map(|trashed| {
            let is_needed = self.shared.slots.get(trashed.entry.id).connections() > 0;
            is_needed.then_some((&trashed.entry, trashed.key, trashed.takes_data))
        });
        let masqueraded = self.servers().chain(removed).filter(|(server, ..)| server.masquerades);
        masqueraded
            .flat_map(|(server, key, takes_data)| {
                // Where clients choose the port, real servers answer from any.
                let port = match key {
                    ServiceKey::Address { port: 1.., .. } if !takes_data => server.port,
                    _ => 0,
                };
                protocols(key).map(move |protocol| (protocol, server.address, port))
            })
            .collect()
    }

    /// The same as the packet path asks for it. Where real servers answer from is what the kernel has in its own table of
    /// them (`ip_vs_rs_hash`): as they are configured now.
    pub(super) fn masqueraded(&self) -> Masqueraded {
        let now = self.servers().filter(|(server, ..)| server.spec.method == ForwardingMethod::Masquerading);
        let ports = now.flat_map(|(server, key, _)| {
            protocols(key).map(move |protocol| (protocol, server.address, server.port))
        });
        let steered = self.steered_by_source().into_iter();
        let addresses = steered.filter(|(.., port)| *port == 0);
        Masqueraded {
            ports: ports.collect(),
            addresses: addresses.map(|(protocol, address, _)| (protocol, address)).collect(),
        }
    }
}
