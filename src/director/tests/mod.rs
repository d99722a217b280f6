//! The director as its worker drives it: frames in, verdicts and frames out.

mod answers;
mod capacity;
mod errors;
mod forwarding;
mod fragments;
mod host;
mod marks;
mod masquerading;
mod one_packet;
mod persistence;
mod splits;
mod states;
mod tunnelling;
mod ways;

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::conn::State;
use crate::forward::NextHopError;
use crate::scheduler;
use crate::service::marks::MarkRules;
use crate::service::{Chooser, RealServer, ServerId, Service, ServiceId, ServiceTable};
use crate::sys::frames::Frame;
use crate::types::{Duration, HashKey, MacAddress, PortId, Protocol, ServiceKey, Tunnel, VlanTag};
use crate::wire::build::{Build, Transport};
use crate::wire::transport::tcp_flags::{ACK, FIN, RST, SYN};
use crate::wire::{self, Outcome};

const OUTSIDE: PortId = PortId(0);
const INSIDE: PortId = PortId(1);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 1];
const DIRECTOR_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 1, 254];
const DIRECTOR_INSIDE: [u8; 6] = [2, 0, 0, 0, 2, 254];
const CLIENT: [u8; 4] = [10, 88, 128, 1];
const VIP: [u8; 4] = [10, 88, 0, 100];
const VIP6: [u8; 16] = [0xfd, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn server_mac(number: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 2, 10 + number as u8])
}

fn ready(number: u32) -> NextHop {
    NextHop::Ready {
        port: INSIDE,
        source: MacAddress(DIRECTOR_INSIDE),
        destination: server_mac(number),
        vlan: None,
        mtu: 1500,
    }
}

/// A director with one TCP and one UDP service for each family, all of them over the same server numbers.
struct Lab {
    director: Director,
    frames: FramePool,
    batch: Batch,
    now: Instant,
    services: Vec<Arc<Service>>,
    network: Network,
    settings: Settings,
    marks: MarkRules,
}

struct Sent {
    verdict: Verdict,
    frame: Vec<u8>,
}

impl Lab {
    fn new(servers: u32) -> Self {
        Self::with_capacity(servers, 1000)
    }

    fn with_capacity(servers: u32, connections: u32) -> Self {
        let capacity = Capacity { connections, servers: 64, workers: 3 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
        let mut network = Network {
            ports: [DIRECTOR_OUTSIDE, DIRECTOR_INSIDE]
                .map(|mac| PortLink { addresses: vec![MacAddress(mac)], networks: Vec::new(), mtu: 1500 })
                .to_vec(),
            local: [IpAddr::from(VIP), IpAddr::from(VIP6)].into(),
            local_networks: Vec::new(),
            next_hops: vec![NextHop::Failed(NextHopError::NoRoute); 64],
            ..Network::default()
        };
        let mut services = Vec::new();
        for (index, (protocol, port, vip)) in [
            (Protocol::Tcp, 80, IpAddr::from(VIP)),
            (Protocol::Udp, 53, VIP.into()),
            (Protocol::Tcp, 80, VIP6.into()),
            (Protocol::Sctp, 2905, VIP.into()),
        ]
        .into_iter()
        .enumerate()
        {
            let id = ServiceId(index as u32);
            let mut chooser = Chooser::new(scheduler::create("rr", 0, HashKey::new([5, 6])).unwrap());
            for number in 1..=servers {
                let server = ServerId(index as u32 * 10 + number);
                let slot = shared.slots.get(server);
                slot.assign(id);
                slot.set_weight(1);
                slot.set_available(true);
                network.next_hops[server.index()] = ready(number);
                let address = IpAddr::from([10, 88, 2, 10 + number as u8]);
                let method = ForwardingMethod::DirectRouting;
                slot.set_endpoint(address, port);
                slot.set_method(method, Tunnel::IPIP);
                chooser.add(&shared.slots, RealServer { id: server, address, port, method });
            }
            let key = ServiceKey::Address { protocol, address: vip, port };
            services.push(Arc::new(Service {
                id,
                key,
                chooser: Arc::new(Mutex::new(chooser)),
                persistence: None,
                one_packet: false,
            }));
        }
        let mut lab = Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(512, 4096).unwrap(),
            batch: Batch::new(),
            now: Instant::ZERO + Duration::from_secs(1),
            services,
            network,
            settings: Settings::default(),
            marks: MarkRules::default(),
        };
        lab.publish();
        lab
    }

    fn publish(&mut self) {
        let mut services = ServiceTable::default();
        self.services.iter().for_each(|service| services.insert(Arc::clone(service)));
        let shared = self.director.shared();
        shared.configuration.store(Arc::new(Configuration {
            services,
            settings: self.settings,
            marks: self.marks.clone(),
            ..Configuration::default()
        }));
        shared.network.store(Arc::new(self.network.clone()));
    }

    fn shared(&self) -> &Shared {
        self.director.shared()
    }

    fn batch(&mut self, sent: &[Vec<u8>]) -> Vec<Sent> {
        for bytes in sent {
            let frame = self.frames.allocate_copy(bytes).unwrap();
            self.batch.push(frame, OUTSIDE, Offload::default()).unwrap();
        }
        self.director.process(&mut self.batch, &self.frames, self.now);
        self.collect()
    }

    fn collect(&mut self) -> Vec<Sent> {
        let entries: Vec<Entry> = self.batch.drain().collect();
        let sent = entries
            .into_iter()
            .map(|entry| {
                let frame: Frame = entry.frame;
                let bytes = self.frames.bytes(&frame).to_vec();
                self.frames.free(frame);
                Sent { verdict: entry.verdict, frame: bytes }
            })
            .collect();
        assert!(self.director.is_conserved(), "{:?}", self.director.frame_counts());
        sent
    }

    fn one(&mut self, frame: Vec<u8>) -> Sent {
        self.one_or_none(frame).unwrap()
    }

    fn one_or_none(&mut self, frame: Vec<u8>) -> Option<Sent> {
        self.batch(&[frame]).pop()
    }

    fn tcp(&mut self, port: u16, flags: u8) -> Verdict {
        self.one(tcp(port, flags)).verdict
    }

    /// The number of the server that a SYN from `port` goes to.
    fn chosen(&mut self, port: u16) -> u32 {
        let sent = self.one(tcp(port, SYN));
        assert_eq!(sent.verdict, Verdict::Transmit(INSIDE));
        u32::from(sent.frame[5]) - 10
    }

    fn tick(&mut self) -> Vec<Sent> {
        while !self.director.tick(&mut self.batch, &self.frames, self.now) {}
        self.collect()
    }

    fn counts(&self, server: u32) -> (u32, u32) {
        let slot = self.shared().slots.get(ServerId(server));
        (slot.active(), slot.inactive())
    }

    fn states(&self) -> Vec<(u16, State)> {
        let mut states = Vec::new();
        self.shared().ipv4.visit(0, 10_000, self.now, |_, lifecycle, record| {
            states.push((record.ports().0, lifecycle.state));
        });
        states
    }
}

fn build() -> Build {
    Build::ipv4(CLIENT, VIP).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE)
}

fn segment(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Tcp { source, destination, flags, sequence: 1000, acknowledgement: 1, options: Vec::new() }
}

fn tcp(source: u16, flags: u8) -> Vec<u8> {
    build().transport(segment(source, 80, flags)).frame()
}

fn udp(source: u16) -> Vec<u8> {
    build().transport(Transport::Udp { source, destination: 53, checksum: true }).payload(b"query").frame()
}

fn tcp6(source: u16, flags: u8) -> Vec<u8> {
    Build::ipv6(CLIENT6, VIP6)
        .source_mac(ROUTER)
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(segment(source, 80, flags))
        .frame()
}
