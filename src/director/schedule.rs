//! A packet without a connection: whether it begins one, and with which real server.

use crate::conn::{
    BucketGuard, Connection, ConnectionId, Flags, FlowKey, Found, Lifecycle, NewConnection, State,
};
use crate::persistence::TemplateId;
use crate::scheduler::Flow;
use crate::service::{FTP_DATA_PORT, RealServer, ServerId, Service};
use crate::types::{ForwardingMethod, Instant, Protocol, ServiceKey};
use crate::wire::Parsed;
use crate::wire::transport::tcp_flags;

use super::configuration::Configuration;
use super::pipeline::{Decision, Handled, Local, Pass, SCTP_ABORT, SCTP_INIT, assures, next_state};
use super::shared::Shared;
use super::{DropReason, Verdict};

impl<'p> Pass<'p> {
    /// A packet without a connection: schedules it, if it may begin one and there is a service for it.
    #[inline(never)]
    pub(super) fn unknown<F: Handled>(
        &mut self,
        packet: &Parsed,
        protocol: Protocol,
        key: &FlowKey<F>,
        hash: u64,
    ) -> Decision {
        let settings = &self.configuration.settings;
        let begins = match protocol {
            Protocol::Tcp => {
                (settings.sloppy_tcp || packet.tcp_flags & tcp_flags::SYN != 0)
                    && packet.tcp_flags & tcp_flags::RST == 0
            }
            Protocol::Udp => true,
            Protocol::Sctp => packet.sctp_chunk == SCTP_INIT,
        };
        if settings.nat_icmp_send && self.is_unknown_answer(packet, protocol) {
            return Decision::End(Verdict::Drop(DropReason::UnknownAnswer));
        }
        let service = self.service(packet, protocol).filter(|service| may_be_scheduled(service, packet));
        let recovers = protocol == Protocol::Tcp && self.now < settings.drop_unknown_until;
        match service {
            // Steered here for a service that the director before had, and this one may yet be given; but where a rule has
            // whole networks steered here, the host's own connections come by as well, and where a masqueraded real server
            // may answer from any port, its own.
            None if recovers
                && !self.is_brought_by_marks(packet)
                && !self.is_brought_by_source(packet, protocol) =>
            {
                Decision::End(Verdict::Drop(DropReason::UnknownAfterRestart))
            }
            None => Decision::End(Verdict::ToHost),
            Some(service) if begins => match &service.persistence {
                None if service.schedules_each_packet(protocol) => self.schedule_alone(service, packet),
                None => self.schedule::<F>(service, packet, protocol, key, hash),
                Some(persistence) => {
                    self.schedule_persistent::<F>(service, persistence, packet, protocol, key, hash)
                }
            },
            Some(_) if recovers => Decision::End(Verdict::Drop(DropReason::UnknownAfterRestart)),
            Some(_) => Decision::End(Verdict::ToHost),
        }
    }

    fn is_brought_by_marks(&self, packet: &Parsed) -> bool {
        let Configuration { services, marks, .. } = self.configuration;
        services.has_marks() && marks.bring(packet)
    }

    fn is_brought_by_source(&self, packet: &Parsed, protocol: Protocol) -> bool {
        self.configuration.masqueraded.addresses.contains(&(protocol, packet.addresses.source()))
    }

    /// Whether the real server that sent this is to hear that nobody is waiting for it (`ip_vs_out_hook`).
    fn is_unknown_answer(&self, packet: &Parsed, protocol: Protocol) -> bool {
        let ends = match protocol {
            Protocol::Tcp => packet.tcp_flags & tcp_flags::RST != 0,
            Protocol::Udp => false,
            Protocol::Sctp => packet.sctp_chunk == SCTP_ABORT,
        };
        let source = (protocol, packet.addresses.source(), packet.source_port);
        // A router looks at the hops that are left first (`ip_forward`).
        !ends && packet.ttl > 1 && self.configuration.masqueraded.ports.contains(&source)
    }

    /// The service that a packet is for: by its mark, wherever it goes; else by its address, which has to be the host's.
    fn service(&self, packet: &Parsed, protocol: Protocol) -> Option<&'p Service> {
        let Configuration { services, marks, .. } = self.configuration;
        if services.has_marks() {
            let mark = marks.mark_of(packet, self.arrival);
            let key = ServiceKey::Mark { family: packet.family(), mark };
            // No service has mark 0, so that a packet without a mark finds none.
            if let Some(service) = services.get(&key) {
                return Some(service);
            }
        }
        let destination = packet.addresses.destination();
        let service = services.find(protocol, destination, packet.destination_port)?;
        self.network.is_local(destination).then_some(&**service)
    }

    /// Picks a real server and makes the connection. Locks, in this order, the service's scheduler and the
    /// flow's bucket or buckets; a connection that another worker made meanwhile is found under the lock, before
    /// anything is picked.
    fn schedule<F: Handled>(
        &mut self,
        service: &Service,
        packet: &Parsed,
        protocol: Protocol,
        key: &FlowKey<F>,
        hash: u64,
    ) -> Decision {
        let shared = self.shared;
        self.see_to_room::<F>(hash);
        let mut chooser = service.chooser.lock();
        let bucket = match self.lock_vacant::<F>(key, hash, None) {
            Ok(bucket) => bucket,
            Err(found) => {
                drop(chooser);
                return self.known_to_another::<F>(found, packet, protocol);
            }
        };
        let Some(server) = chooser.choose(&shared.slots, &flow_of(packet, self.now)) else {
            return Decision::End(Verdict::Drop(DropReason::NoRealServer));
        };
        let port = port_at(&server, packet);
        let bucket = match self.lock_replies::<F>(bucket, key, hash, (&server, port)) {
            Ok(bucket) => bucket,
            // Somebody who goes by another scheduler, for a service that was made anew: the turn is lost.
            Err(found) => {
                drop(chooser);
                return self.known_to_another::<F>(found, packet, protocol);
            }
        };
        let made = self.make::<F>(bucket, key, packet, protocol, (server, port), None);
        drop(chooser);
        self.conclude(service, packet, server, made)
    }

    /// Picks a real server for this packet alone.
    fn schedule_alone(&self, service: &Service, packet: &Parsed) -> Decision {
        let picked = service.chooser.lock().choose(&self.shared.slots, &flow_of(packet, self.now));
        picked.map_or(Decision::End(Verdict::Drop(DropReason::NoRealServer)), |server| {
            self.send_alone(service, packet, (server, port_at(&server, packet)))
        })
    }

    /// Sends a packet to its real server without a connection. It counts as one nevertheless, which has ended.
    pub(super) fn send_alone(
        &self,
        service: &Service,
        packet: &Parsed,
        (server, port): (RealServer, u16),
    ) -> Decision {
        self.count_first(service, packet, server.id);
        match server.method {
            ForwardingMethod::Masquerading => Decision::ToServerAlone(server.id, port),
            method => Decision::Forward(server.id, method),
        }
    }

    /// Counts the connection that was made, if it was.
    pub(super) fn conclude(
        &self,
        service: &Service,
        packet: &Parsed,
        server: RealServer,
        made: Option<ConnectionId>,
    ) -> Decision {
        let Some(id) = made else {
            return Decision::End(Verdict::Drop(DropReason::ConnectionTableFull));
        };
        self.count_first(service, packet, server.id);
        Decision::to_server(server.id, server.method, id)
    }

    /// Counts a connection and its first packet.
    fn count_first(&self, service: &Service, packet: &Parsed, server: ServerId) {
        let traffic = &self.counters.traffic;
        traffic.server(server).connection();
        traffic.service(service.id).connection();
        self.count(server, self.shared.slots.get(server), packet);
    }

    /// Locks a flow's bucket, and that of its replies, once the flow has no connection, not even one past its deadline;
    /// gives back the connection that it has.
    pub(super) fn lock_vacant<F: Handled>(
        &mut self,
        key: &FlowKey<F>,
        hash: u64,
        reply_hash: Option<u64>,
    ) -> Result<BucketGuard<'p, F>, Found> {
        let table = F::table(self.shared);
        loop {
            let bucket = match reply_hash {
                Some(reply_hash) => table.lock_both(hash, reply_hash),
                None => table.lock(hash),
            };
            if let Some(found) = bucket.find(key, self.now) {
                return Err(found);
            }
            let Some(expired) = bucket.find_expired(key) else { return Ok(bucket) };
            // It may have replies of its own, whose bucket is another one. Each turn ends one: there is seldom a second.
            drop(bucket);
            self.end::<F>(expired);
        }
    }

    /// Locks the bucket of a flow's replies as well, now that it is known which server sends them from which port, if
    /// they are to be translated. The two are locked in an order of their own, for which the one has to be let go:
    /// gives back the connection that somebody made meanwhile.
    pub(super) fn lock_replies<F: Handled>(
        &mut self,
        bucket: BucketGuard<'p, F>,
        key: &FlowKey<F>,
        hash: u64,
        (server, port): (&RealServer, u16),
    ) -> Result<BucketGuard<'p, F>, Found> {
        match (server.method, F::address(server.address)) {
            (ForwardingMethod::Masquerading, Some(address)) => {
                drop(bucket);
                let reply_hash = F::table(self.shared).hash(&key.reply(address, port));
                self.lock_vacant::<F>(key, hash, Some(reply_hash))
            }
            _ => Ok(bucket),
        }
    }

    /// Makes room in a table that is nearly full. The caller holds no lock.
    #[inline]
    pub(super) fn see_to_room<F: Handled>(&mut self, random: u64) {
        if F::table(self.shared).is_nearly_full() {
            self.make_room::<F>(random);
        }
    }

    /// Ends some connections that never came to anything, so that a flood pushes out its own kind before those that
    /// somebody uses: TCP and SCTP that are half open or over, UDP of a single packet.
    #[cold]
    fn make_room<F: Handled>(&mut self, random: u64) {
        let Shared { slots, epochs, .. } = self.shared;
        let unassured = |lifecycle: Lifecycle, record: Connection<'_, F>| {
            let (_, _, protocol) = record.ports();
            match Protocol::from_number(protocol) {
                Some(Protocol::Tcp) => {
                    matches!(lifecycle.state, State::SYN_RECV | State::SYNACK | State::CLOSE)
                }
                Some(Protocol::Sctp) => matches!(
                    lifecycle.state,
                    State::SCTP_INIT1 | State::SCTP_INIT | State::SCTP_REJECTED | State::SCTP_CLOSED
                ),
                Some(Protocol::Udp) => record.packets() <= 1,
                None => true,
            }
        };
        let view = &mut F::local(self.locals).view;
        F::table(self.shared).evict(random, slots, view, epochs, unassured);
    }

    /// The connection that another worker made since the look-up.
    #[cold]
    pub(super) fn known_to_another<F: Handled>(
        &mut self,
        found: Found,
        packet: &Parsed,
        protocol: Protocol,
    ) -> Decision {
        let Found { index, is_reply } = found;
        if is_reply {
            return self.reply::<F>(index, packet, protocol);
        }
        let record = F::table(self.shared).record(index);
        let (server, lifecycle) = (record.server(), record.lifecycle());
        self.count(server, self.shared.slots.get(server), packet);
        record.count_packet();
        self.advance::<F>(index, record, lifecycle, packet, protocol, false);
        let id = ConnectionId { index, generation: lifecycle.generation };
        Decision::to_server(server, lifecycle.method, id)
    }

    /// Makes the connection of a packet in its locked bucket, lets that go and files the timer; `None` where there is no
    /// room. A template counts it already, and no longer if it was not made.
    pub(super) fn make<F: Handled>(
        &mut self,
        bucket: BucketGuard<'_, F>,
        key: &FlowKey<F>,
        packet: &Parsed,
        protocol: Protocol,
        (server, port): (RealServer, u16),
        control: Option<TemplateId>,
    ) -> Option<ConnectionId> {
        let Shared { slots, epochs, .. } = self.shared;
        let Local { view, wheel } = F::local(self.locals);
        let mut flags = Flags::INACTIVE;
        if server.method != ForwardingMethod::Masquerading {
            flags = flags.with(Flags::NO_OUTPUT);
        }
        let fresh = Lifecycle { generation: 0, method: server.method, flags, state: State::NONE };
        let state = next_state(protocol, fresh, packet, false);
        if state.is_active(protocol) {
            flags = flags.without(Flags::INACTIVE);
        }
        let deadline = self.now + self.configuration.settings.timeouts.of(packet.protocol, state);
        let RealServer { id, address, method, .. } = server;
        let new = NewConnection { server: id, address, port, method, flags, state, deadline, control };
        let table = F::table(self.shared);
        let Ok(index) = bucket.insert(key, new, slots, view, epochs) else {
            control.into_iter().for_each(|template| table.templates().give_up_control(template));
            return None;
        };
        if let Some(template) = control.filter(|_| assures(protocol, state)) {
            table.templates().assure(template);
        }
        let id = ConnectionId { index, generation: table.record(index).lifecycle().generation };
        table.record(index).count_packet();
        let filed = wheel.file(table, index, deadline);
        drop(bucket);
        if filed {
            return Some(id);
        }
        self.end::<F>(id);
        None
    }
}

/// The port that packets to a real server carry. Only NAT translates ports (`ip_vs_conn_new` for the others gets the
/// destination's own port).
pub(super) fn port_at(server: &RealServer, packet: &Parsed) -> u16 {
    match server.method {
        ForwardingMethod::Masquerading if server.port != 0 => server.port,
        _ => packet.destination_port,
    }
}

/// What a scheduler is told of a packet.
#[inline]
pub(super) fn flow_of(packet: &Parsed, now: Instant) -> Flow {
    Flow {
        client: packet.addresses.source(),
        client_port: packet.source_port,
        destination: packet.addresses.destination(),
        now,
    }
}

/// Whether a service schedules a packet that was found to be its own: never FTP's active data, and without persistence no
/// other port than its own, such as that of FTP's passive data (`ip_vs_schedule`).
#[inline]
fn may_be_scheduled(service: &Service, packet: &Parsed) -> bool {
    let own_port = match service.key {
        ServiceKey::Address { port, .. } => port == packet.destination_port,
        ServiceKey::Mark { .. } => true,
    };
    (own_port || service.persistence.is_some()) && packet.source_port != FTP_DATA_PORT
}
