//! New connections of persistent services: a client goes where its template says.

use crate::conn::FlowKey;
use crate::persistence::{Found, NewTemplate, Persistence, TemplateKey, own_port};
use crate::service::{FTP_PORT, RealServer, Service};
use crate::types::{Protocol, ServiceKey};
use crate::wire::Parsed;

use super::pipeline::{Decision, Handled, Pass};
use super::schedule::{flow_of, port_at};
use super::{DropReason, Verdict};

impl Pass<'_> {
    /// Makes the connection that the client's template asks for, if the service makes any, or asks the scheduler and makes a template, too
    /// (`ip_vs_sched_persist`). Locks, in this order, the template's shard, the service's scheduler if it is asked, and the
    /// flow's bucket. Nothing changes before it is known under all of them that no other worker made the connection.
    pub(super) fn schedule_persistent<F: Handled>(
        &mut self,
        service: &Service,
        persistence: &Persistence,
        packet: &Parsed,
        protocol: Protocol,
        key: &FlowKey<F>,
        hash: u64,
    ) -> Decision {
        let shared = self.shared;
        let table = F::table(shared);
        self.see_to_room::<F>(hash);
        let port = packet.destination_port;
        let wanted =
            TemplateKey::<F>::new(&service.key, persistence.mask, key.addresses, packet.protocol, port);
        let mut shard = table.templates().lock(&wanted.flow);
        let found = shard.find(&wanted.flow, &shared.slots, self.now);
        let usable = found.filter(|found| self.is_usable(found));
        let mut chooser = if usable.is_none() { Some(service.chooser.lock()) } else { None };
        let bucket = match self.lock_vacant::<F>(key, hash, None) {
            Ok(bucket) => bucket,
            Err(found) => {
                drop((chooser, shard));
                return self.known_to_another::<F>(found, packet, protocol);
            }
        };
        if let (None, Some(stale)) = (usable, found) {
            shard.invalidate(stale.id);
        }
        let (template, server) = match (usable, &mut chooser) {
            (Some(Found { id, server }), _) => (id, shared.slots.get(server).real_server(server)),
            (None, Some(chooser)) => {
                let Some(server) = chooser.choose(&shared.slots, &flow_of(packet, self.now)) else {
                    return Decision::End(without_server(service, packet));
                };
                let server_port = if wanted.of_one_port { server.port } else { 0 };
                let new = NewTemplate { server: server.id, port: server_port, timeout: persistence.timeout };
                match shard.insert(&wanted.flow, new, &shared.slots, self.now) {
                    Ok(id) => (id, server),
                    Err(_) => return Decision::End(Verdict::Drop(DropReason::TemplateTableFull)),
                }
            }
            (None, None) => return Decision::End(without_server(service, packet)),
        };
        // The real server's port is for packets to the service's own; others keep theirs.
        let port = if own_port(&service.key) == port { server.port } else { 0 };
        let server = RealServer { port, ..server };
        let port = port_at(&server, packet);
        if service.schedules_each_packet(protocol) {
            // As if a connection began and was over.
            shard.take_control(template, self.now);
            table.templates().give_up_control(template);
            return self.send_alone(service, packet, (server, port));
        }
        let bucket = match self.lock_replies::<F>(bucket, key, hash, (&server, port)) {
            Ok(bucket) => bucket,
            // For a service that was made anew: what the template was made for came otherwise.
            Err(found) => {
                drop((chooser, shard));
                return self.known_to_another::<F>(found, packet, protocol);
            }
        };
        shard.take_control(template, self.now);
        let made = self.make::<F>(bucket, key, packet, protocol, (server, port), Some(template));
        drop((chooser, shard));
        self.conclude(service, packet, server, made)
    }

    /// Whether a template leads to a real server that takes its clients (`ip_vs_check_template`): one that is configured,
    /// overloaded or not, and, where a setting says so, not quiescent.
    fn is_usable(&self, found: &Found) -> bool {
        let slot = self.shared.slots.get(found.server);
        let expires = self.configuration.settings.expire_quiescent_template;
        slot.is_available() && !(expires && slot.weight() == 0)
    }
}

/// What becomes of a packet for which there is no real server: what may not be FTP's at all is the host's
/// (`ip_vs_leave`).
fn without_server(service: &Service, packet: &Parsed) -> Verdict {
    match service.key {
        ServiceKey::Address { port: FTP_PORT, .. } if packet.destination_port != FTP_PORT => Verdict::ToHost,
        _ => Verdict::Drop(DropReason::NoRealServer),
    }
}
