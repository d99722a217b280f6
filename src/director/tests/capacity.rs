//! Tables that are full, and floods that try to fill them.

use super::*;

#[test]
fn a_full_table_refuses_the_next_and_keeps_the_rest() {
    let mut lab = Lab::with_capacity(1, 10);
    for port in 0..10 {
        lab.chosen(4000 + port);
        lab.tcp(4000 + port, ACK);
    }
    assert_eq!(lab.tcp(5000, SYN), Verdict::Drop(DropReason::ConnectionTableFull));
    assert_eq!(lab.counts(1), (10, 0));
    assert_eq!(lab.tcp(4009, ACK), Verdict::Transmit(INSIDE));
    lab.tcp(4000, RST);
    lab.now += Duration::from_secs(11);
    lab.tick();
    lab.tick();
    assert_eq!(lab.tcp(5000, SYN), Verdict::Transmit(INSIDE));
}

#[test]
fn a_flood_of_syns_pushes_out_its_own_kind() {
    let mut lab = Lab::with_capacity(1, 200);
    for port in 0..100 {
        lab.chosen(1000 + port);
        lab.tcp(1000 + port, ACK);
    }
    let mut refused = 0;
    // Many times the table, before the first of their timers is due.
    for port in 0..50_000 {
        refused += usize::from(lab.tcp(10_000 + port, SYN) != Verdict::Transmit(INSIDE));
    }
    assert!(refused < 5000, "{refused} of 50,000 refused: the flood's own older connections make room");
    assert!((0..100).all(|port| lab.tcp(1000 + port, ACK) == Verdict::Transmit(INSIDE)));
    assert!(lab.shared().ipv4.alive() <= 200);
    let states = lab.states();
    assert_eq!(states.iter().filter(|(_, state)| *state == State::ESTABLISHED).count(), 100);
}

#[test]
fn a_flood_of_queries_or_associations_leaves_room_for_others() {
    let init = |source| {
        build()
            .transport(Transport::Sctp { source, destination: 2905, tag: 0, chunk: 1, chunk_payload: 16 })
            .payload(&[0; 16])
            .frame()
    };
    for flood in [&(|port| udp(port)) as &dyn Fn(u16) -> Vec<u8>, &init] {
        let mut lab = Lab::with_capacity(1, 200);
        (0..400).for_each(|port| _ = lab.one(flood(10_000 + port)));
        assert!(lab.shared().ipv4.alive() > 180);
        let served = (0..20).filter(|port| lab.tcp(1000 + port, SYN) == Verdict::Transmit(INSIDE)).count();
        assert!(served > 18, "{served} of 20");
    }
}
