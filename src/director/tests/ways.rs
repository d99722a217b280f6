//! Ways to real servers that are unknown, not known yet, or down.

use super::*;

/// A real server that the network's snapshot does not know yet is one that was added this moment.
#[test]
fn a_way_not_known_yet_is_waited_for() {
    let mut lab = Lab::new(2);
    let hops = std::mem::replace(&mut lab.network.next_hops, vec![NextHop::Resolving]);
    lab.publish();
    assert!(lab.one_or_none(tcp(4000, SYN)).is_none(), "held");
    lab.network.next_hops = hops;
    lab.publish();
    assert_eq!(lab.tick().len(), 1);
}

#[test]
fn frames_wait_for_a_link_address_in_order_and_not_for_ever() {
    let mut lab = Lab::new(2);
    lab.network.next_hops[2] = NextHop::Resolving;
    lab.publish();
    // rr: ports 0, 2, 4... go to server 2, the others to 1.
    let sent: Vec<_> = (0..6).map(|port| tcp(4000 + port, SYN)).collect();
    assert!(
        lab.batch(&sent).iter().all(|sent| sent.verdict == Verdict::Transmit(INSIDE) && sent.frame[5] == 11)
    );
    assert!(lab.director.is_holding());
    assert!(lab.tick().is_empty());
    lab.network.next_hops[2] = ready(2);
    lab.publish();
    let released = lab.tick();
    let ports: Vec<u8> = released.iter().map(|sent| sent.frame[35]).collect();
    assert_eq!(ports, [0xa0, 0xa2, 0xa4]);
    assert!(released.iter().all(|sent| sent.verdict == Verdict::Transmit(INSIDE) && sent.frame[22] == 63));
    lab.network.next_hops[2] = NextHop::Resolving;
    lab.publish();
    let many: Vec<_> = (0..64).map(|_| tcp(4000, ACK)).collect();
    assert!(lab.batch(&many).is_empty());
    let over: Vec<_> = lab.batch(&many[..3]).iter().map(|sent| sent.verdict).collect();
    assert_eq!(over, [Verdict::Drop(DropReason::NeighbourQueueFull); 3]);
    lab.now += Duration::from_secs(3);
    assert!(lab.director.next_deadline().is_some_and(|next| next <= lab.now));
    assert!(lab.tick().iter().all(|sent| sent.verdict == Verdict::Drop(DropReason::NeighbourFailed)));
    assert_eq!((lab.frames.available(), lab.director.is_holding()), (512, false));
}

#[test]
fn a_down_or_missing_way_is_a_reason_of_its_own() {
    let mut lab = Lab::new(1);
    for (next_hop, expected) in [
        (NextHop::Failed(NextHopError::NoRoute), Verdict::Drop(DropReason::NoRoute)),
        (NextHop::Failed(NextHopError::ForeignInterface), Verdict::Drop(DropReason::ForeignInterface)),
        (NextHop::Failed(NextHopError::NeighbourFailed), Verdict::Drop(DropReason::NeighbourFailed)),
        (NextHop::Failed(NextHopError::PortDown), Verdict::Drop(DropReason::PortDown)),
        (NextHop::Local, Verdict::ToHost),
        (ready(1), Verdict::Transmit(INSIDE)),
    ] {
        lab.network.next_hops[1] = next_hop;
        lab.publish();
        assert_eq!(lab.tcp(4000, SYN), expected);
    }
}
