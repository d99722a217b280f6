//! Packets that rules mark.

use super::*;
use crate::service::marks::{
    AddressMatch, MarkRule, MarkTarget, PortMatch, PortRange, ProtocolMatch, RuleCounters,
};
use crate::types::Family;

const MARK: u32 = 7;

impl Lab {
    /// Adds a service by mark with one real server, number 9, and these rules of its family.
    fn add_marks(&mut self, family: Family, rules: &[MarkRule]) {
        let (id, server) = (ServiceId(9), ServerId(9));
        let slot = self.shared().slots.get(server);
        slot.assign(id);
        slot.set_weight(1);
        slot.set_available(true);
        self.network.next_hops[server.index()] = ready(9);
        let mut chooser = Chooser::new(scheduler::create("rr", 0, HashKey::new([5, 6])).unwrap());
        let (address, method) = (IpAddr::from([10, 88, 2, 19]), ForwardingMethod::DirectRouting);
        chooser.add(&self.shared().slots, RealServer { id: server, address, port: 0, method });
        let key = ServiceKey::Mark { family, mark: MARK };
        self.services.push(Arc::new(Service {
            id,
            key,
            persistence: None,
            one_packet: false,
            chooser: Arc::new(Mutex::new(chooser)),
        }));
        let counters: Vec<Arc<RuleCounters>> = rules.iter().map(|_| Arc::default()).collect();
        self.marks = MarkRules::new(rules.iter().zip(&counters), &[]);
        self.publish();
    }
}

/// Marks TCP to a port of `destination`.
fn rule(destination: AddressMatch, port: u16) -> MarkRule {
    let destination_port = PortRange { first: port, last: port, inverted: false };
    MarkRule {
        destination,
        protocol: ProtocolMatch { number: 6, inverted: false },
        ports: vec![PortMatch::Transport { source: PortRange::ANY, destination: destination_port }],
        target: Some(MarkTarget::Mark { value: MARK, mask: u32::MAX }),
        ..MarkRule::any(Family::V4)
    }
}

fn to_port(port: u16, flags: u8) -> Vec<u8> {
    build().transport(segment(4000, port, flags)).frame()
}

#[test]
fn the_packets_port_is_kept_and_the_mark_comes_first() {
    let mut lab = Lab::new(2);
    lab.add_marks(Family::V4, &[rule(AddressMatch::prefix(VIP.into(), 32, false), 80)]);
    let sent = lab.one(to_port(80, SYN));
    assert_eq!((sent.verdict, &sent.frame[..6]), (Verdict::Transmit(INSIDE), &server_mac(9).0[..]));
    lab.shared().ipv4.visit(0, 100, lab.now, |_, _, record| assert_eq!(record.target().1, 80));
    assert_eq!(lab.shared().ipv4.alive(), 1);
    assert_eq!(lab.counts(9), (1, 0));
    let traffic = lab.shared().service_traffic(ServiceId(9));
    assert_eq!((traffic.connections, traffic.in_packets), (1, 1));
}

#[test]
fn each_family_has_marks_of_its_own() {
    let mut lab = Lab::new(2);
    let all = |family| MarkRule {
        target: Some(MarkTarget::Mark { value: MARK, mask: 0 }),
        ..MarkRule::any(family)
    };
    lab.add_marks(Family::V6, &[all(Family::V4), all(Family::V6)]);
    let sent = lab.one(tcp6(4000, SYN));
    assert_eq!((sent.verdict, &sent.frame[..6]), (Verdict::Transmit(INSIDE), &server_mac(9).0[..]));
    // IPv4's packets have the mark as well, but no service by it.
    assert_eq!(lab.chosen(4000), 2);
}

#[test]
fn after_a_restart_what_was_marked_is_dropped_and_the_hosts_own_is_not() {
    let mut lab = Lab::new(2);
    let exact = AddressMatch::prefix(VIP.into(), 32, false);
    for (destination, others) in [
        // Only a service that the director before had can have brought the other port here.
        (exact, Verdict::Drop(DropReason::UnknownAfterRestart)),
        (AddressMatch::prefix(VIP.into(), 24, false), Verdict::ToHost),
        (AddressMatch::any(Family::V4), Verdict::ToHost),
    ] {
        lab.services.truncate(4);
        lab.settings.drop_unknown_until = lab.now + Duration::from_secs(60);
        lab.add_marks(Family::V4, &[rule(destination, 8080)]);
        let unknown = Verdict::Drop(DropReason::UnknownAfterRestart);
        assert_eq!(lab.one(to_port(8080, ACK)).verdict, unknown, "marked");
        assert_eq!(lab.one(to_port(80, ACK)).verdict, unknown, "a service's");
        assert_eq!(lab.one(to_port(22, ACK)).verdict, others, "{destination:?}");
    }
}

#[test]
fn after_a_restart_what_is_left_out_of_everything_is_the_hosts() {
    let mut lab = Lab::new(2);
    lab.settings.drop_unknown_until = lab.now + Duration::from_secs(60);
    // All but the virtual address: steered here is all.
    lab.add_marks(Family::V4, &[rule(AddressMatch::prefix(VIP.into(), 32, true), 8080)]);
    assert_eq!(lab.one(to_port(22, ACK)).verdict, Verdict::ToHost);
}
