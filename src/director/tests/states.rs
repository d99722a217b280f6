//! Connections over time: their states, and what becomes of them with their real servers.

use super::*;

#[test]
fn states_follow_the_client_alone() {
    let mut lab = Lab::new(1);
    for (flags, state, counts) in [
        (SYN, State::SYN_RECV, (1, 0)),
        (RST, State::SYN_RECV, (1, 0)),
        (ACK, State::ESTABLISHED, (1, 0)),
        (FIN | ACK, State::FIN_WAIT, (0, 1)),
        (ACK, State::FIN_WAIT, (0, 1)),
        (SYN, State::SYN_RECV, (1, 0)),
        (ACK, State::ESTABLISHED, (1, 0)),
        (RST, State::CLOSE, (0, 1)),
    ] {
        lab.tcp(4000, flags);
        assert_eq!(lab.states(), [(4000, state)], "after {flags:#x}");
        assert_eq!(lab.counts(1), counts, "after {flags:#x}");
    }
    // CLOSE is 10 seconds.
    lab.now += Duration::from_secs(10);
    assert!(lab.states().is_empty());
    lab.now += Duration::from_millis(20);
    lab.tick();
    assert_eq!((lab.counts(1), lab.shared().ipv4.alive()), ((0, 0), 0));
    assert_eq!(
        lab.director.next_deadline().map(|next| next > lab.now),
        Some(true),
        "the 15-minute left-over"
    );
}

#[test]
fn a_syn_on_old_ports_begins_anew_where_it_may() {
    // {mode, flags that end the first connection, whether the second goes elsewhere}
    let rows =
        [(0, RST, false), (1, RST, true), (1, FIN | ACK, false), (3, FIN | ACK, true), (2, FIN | ACK, true)];
    for (mode, end, elsewhere) in rows {
        let mut lab = Lab::new(2);
        lab.settings.conn_reuse_mode = mode;
        lab.publish();
        let first = lab.chosen(4000);
        lab.tcp(4000, ACK);
        lab.tcp(4000, end);
        assert_eq!(lab.chosen(4000) != first, elsewhere, "mode {mode}, end {end:#x}");
        assert_eq!(lab.states(), [(4000, State::SYN_RECV)]);
        assert_eq!(lab.shared().ipv4.alive(), 1);
    }
}

#[test]
fn a_removed_servers_packets_are_dropped_or_scheduled_anew() {
    let mut lab = Lab::new(2);
    assert_eq!(lab.chosen(4000), 2);
    lab.services[0].chooser.lock().remove(&lab.director.shared().slots, ServerId(2));
    lab.shared().slots.get(ServerId(2)).set_available(false);
    assert_eq!(lab.tcp(4000, ACK), Verdict::Drop(DropReason::RealServerGone));
    lab.shared().slots.get(ServerId(2)).set_available(true);
    assert_eq!(lab.tcp(4000, ACK), Verdict::Transmit(INSIDE), "it came back");
    lab.shared().slots.get(ServerId(2)).set_available(false);
    lab.settings.expire_nodest_conn = true;
    lab.publish();
    assert_eq!(lab.tcp(4000, ACK), Verdict::ToHost, "not a SYN: nobody's");
    assert_eq!(lab.chosen(4000), 1);
    assert_eq!(lab.counts(2), (0, 0));
}

#[test]
fn nobody_to_serve_is_a_drop_and_quiescent_servers_keep_what_they_have() {
    let mut lab = Lab::new(1);
    assert_eq!(lab.chosen(4000), 1);
    lab.shared().slots.get(ServerId(1)).set_weight(0);
    assert_eq!(lab.tcp(4001, SYN), Verdict::Reply(OUTSIDE));
    assert_eq!(lab.tcp(4000, ACK), Verdict::Transmit(INSIDE));
}

#[test]
fn after_a_kill_unknown_connections_are_not_shown_to_the_host() {
    let mut lab = Lab::new(1);
    lab.settings.drop_unknown_until = lab.now + Duration::from_secs(60);
    lab.publish();
    assert_eq!(lab.tcp(4000, ACK), Verdict::Drop(DropReason::UnknownAfterRestart));
    assert_eq!(lab.tcp(4000, SYN), Verdict::Transmit(INSIDE));
    lab.now += Duration::from_secs(60);
    assert_eq!(lab.tcp(4001, ACK), Verdict::ToHost);
}
