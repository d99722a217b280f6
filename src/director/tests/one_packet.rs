//! One-packet scheduling: every packet of UDP by itself.

use super::*;
use crate::persistence::{ClientMask, Persistence};
use crate::wire::Fragment;

const UDP: u32 = 10;

impl Lab {
    /// All services schedule every packet by itself.
    fn into_one_packet(mut self, persistence: Option<Persistence>) -> Self {
        for service in &mut self.services {
            let Service { id, key, ref chooser, .. } = **service;
            let chooser = Arc::clone(chooser);
            *service = Arc::new(Service { id, key, chooser, persistence, one_packet: true });
        }
        self.publish();
        self
    }

    /// The number of the server that a UDP packet from `port` goes to.
    fn goes_alone(&mut self, port: u16) -> u32 {
        let sent = self.one(udp(port));
        assert_eq!(sent.verdict, Verdict::Transmit(INSIDE));
        u32::from(sent.frame[5]) - 10
    }

    /// Connections and packets of a server's, and of its service's.
    fn counted(&self, server: u32, service: u32) -> [(u64, u64); 2] {
        let shared = self.shared();
        [shared.server_traffic(ServerId(server)), shared.service_traffic(ServiceId(service))]
            .map(|traffic| (traffic.connections, traffic.in_packets))
    }
}

fn destination(sent: &Sent) -> (IpAddr, u16) {
    let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("not a packet") };
    (packet.addresses.destination(), packet.destination_port)
}

#[test]
fn every_packet_is_scheduled_anew_and_counts_as_a_connection() {
    let mut lab = Lab::new(3).into_one_packet(None);
    let went: Vec<u32> = (0..6).map(|_| lab.goes_alone(4000)).collect();
    assert_eq!(went, [3, 2, 1, 3, 2, 1]);
    assert_eq!(lab.shared().ipv4.alive(), 0);
    assert_eq!(lab.counted(UDP + 1, 1), [(2, 2), (6, 6)]);
    assert_eq!(lab.counts(UDP + 1), (0, 0));
    (1..=3).for_each(|server| lab.shared().slots.get(ServerId(UDP + server)).set_weight(0));
    assert_eq!(lab.one(udp(4000)).verdict, Verdict::Reply(OUTSIDE), "unreachable");
}

#[test]
fn other_protocols_are_scheduled_as_ever() {
    let mut lab = Lab::new(3).into_one_packet(None);
    let server = lab.chosen(4000);
    assert_eq!((lab.chosen(4000), lab.chosen(4000)), (server, server));
    assert_eq!(lab.counts(server), (1, 0));
    assert_eq!(lab.shared().ipv4.alive(), 1);
}

#[test]
fn a_connection_that_is_there_goes_on() {
    let mut lab = Lab::new(3);
    let server = lab.goes_alone(4000);
    let mut lab = lab.into_one_packet(None);
    assert_eq!([lab.goes_alone(4000), lab.goes_alone(4000)], [server; 2]);
    assert_ne!(lab.goes_alone(4001), lab.goes_alone(4001));
    assert_eq!(lab.shared().ipv4.alive(), 1);
}

#[test]
fn a_template_leads_every_packet_to_one_server() {
    let timeout = Duration::from_secs(50);
    let persistence = Persistence { timeout, mask: ClientMask::ALL };
    let mut lab = Lab::new(3).into_one_packet(Some(persistence));
    let left = |lab: &Lab| {
        let mut all = Vec::new();
        lab.shared().ipv4.templates().visit(0, u32::MAX, lab.now, |walked| {
            all.push((walked.remaining.as_secs(), walked.assured));
        });
        all
    };
    let server = lab.goes_alone(4000);
    lab.now += Duration::from_secs(40);
    lab.tick();
    assert_eq!(left(&lab), [(10, false)]);
    assert_eq!([lab.goes_alone(4000), lab.goes_alone(4001)], [server; 2]);
    assert_eq!(left(&lab), [(50, false)], "each packet starts its time anew");
    assert_eq!(lab.shared().ipv4.alive(), 0);
    assert_eq!(lab.counted(UDP + server, 1), [(3, 3); 2]);
    lab.now += Duration::from_secs(51);
    lab.tick();
    assert_eq!(left(&lab), [], "nothing holds it");
    assert_ne!(lab.goes_alone(4000), server);
}

#[test]
fn masquerading_translates_what_goes_in_and_nothing_that_comes_back() {
    let mut lab = Lab::masqueraded().into_one_packet(None);
    let server = (IpAddr::from([10, 88, 2, 11]), 8053);
    for _ in 0..2 {
        let sent = lab.one(udp(4000));
        assert_eq!((sent.verdict, destination(&sent)), (Verdict::Transmit(INSIDE), server));
    }
    assert_eq!(lab.shared().ipv4.alive(), 0);
    let answer = Build::ipv4([10, 88, 2, 11], CLIENT)
        .source_mac(server_mac(1).0)
        .destination_mac(DIRECTOR_INSIDE)
        .transport(Transport::udp(8053, 4000))
        .frame();
    let frame = lab.frames.allocate_copy(&answer).unwrap();
    lab.batch.push(frame, INSIDE, Offload::default()).unwrap();
    lab.director.process(&mut lab.batch, &lab.frames, lab.now);
    let sent = lab.collect().pop().unwrap();
    assert_eq!((sent.verdict, sent.frame), (Verdict::ToHost, answer));
    assert_eq!(lab.counted(UDP + 1, 1), [(2, 2); 2]);
}

#[test]
fn later_fragments_follow_the_first_without_a_connection() {
    let whole = build().transport(Transport::udp(4000, 53)).payload(&[7; 2000]);
    let pieces = |identification| {
        let whole = whole.clone().identification(identification);
        whole.fragments(1000)
    };
    for lab in [Lab::new(3), Lab::masqueraded()] {
        let mut lab = lab.into_one_packet(None);
        for identification in 0..3 {
            let pieces: Vec<Vec<u8>> = pieces(identification);
            let first = lab.one(pieces[0].clone());
            // Others are scheduled in between.
            lab.one(udp(4001));
            for piece in &pieces[1..] {
                let later = lab.one(piece.clone());
                assert_eq!(later.verdict, Verdict::Transmit(INSIDE));
                assert_eq!(later.frame[..6], first.frame[..6]);
                assert_eq!(destination(&later).0, destination(&first).0);
                let Outcome::Packet(packet) = wire::parse(&later.frame) else { panic!("not a packet") };
                assert!(matches!(packet.fragment, Fragment::Later { .. }));
            }
        }
        assert_eq!(lab.shared().ipv4.alive(), 0);
    }
}
