//! What is left to the host, and what is dropped.

use super::*;

#[test]
fn what_begins_no_connection_is_the_hosts() {
    let mut lab = Lab::new(1);
    // {flags, scheduled}: anything with SYN and without RST (recorded from the kernel).
    let rows = [
        (ACK, false),
        (RST, false),
        (FIN | ACK, false),
        (SYN | ACK, true),
        (0, false),
        (SYN | RST, false),
        (SYN | FIN, true),
    ];
    for (index, (flags, scheduled)) in rows.into_iter().enumerate() {
        let expected = if scheduled { Verdict::Transmit(INSIDE) } else { Verdict::ToHost };
        assert_eq!(lab.tcp(5000 + index as u16, flags), expected, "flags {flags:#x}");
    }
    lab.settings.sloppy_tcp = true;
    lab.publish();
    let sloppy = [
        (ACK, true, State::ESTABLISHED),
        (FIN | ACK, true, State::CLOSE),
        (0, true, State::CLOSE),
        (RST, false, State::NONE),
    ];
    for (index, (flags, scheduled, state)) in sloppy.into_iter().enumerate() {
        let port = 6000 + index as u16;
        let expected = if scheduled { Verdict::Transmit(INSIDE) } else { Verdict::ToHost };
        assert_eq!(lab.tcp(port, flags), expected, "sloppy, flags {flags:#x}");
        assert_eq!(lab.states().contains(&(port, state)), scheduled);
    }
}

/// Without persistence a service schedules its own port alone, though look-up finds an FTP service for its data.
#[test]
fn ftp_data_is_the_hosts() {
    let mut lab = Lab::new(1);
    let former = &lab.services[0];
    let key = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port: 21 };
    let chooser = Arc::clone(&former.chooser);
    lab.services.push(Arc::new(Service {
        id: ServiceId(9),
        key,
        chooser,
        persistence: None,
        one_packet: false,
    }));
    lab.publish();
    let to = |source, port| build().transport(segment(source, port, SYN)).frame();
    assert_eq!(lab.one(to(4000, 21)).verdict, Verdict::Transmit(INSIDE));
    assert_eq!(lab.one(to(4000, 5000)).verdict, Verdict::ToHost, "what may be passive data");
    assert_eq!(lab.one(to(4000, 20)).verdict, Verdict::ToHost);
    assert_eq!(lab.one(to(20, 80)).verdict, Verdict::ToHost, "what may be active data");
    assert_eq!(lab.shared().ipv4.alive(), 1);
}

/// What is dropped for being broken is in the table of tests/end_to_end/trouble.
#[test]
fn what_is_not_ours_goes_to_the_host() {
    let mut lab = Lab::new(1);
    let other_port = build().transport(segment(1, 81, SYN)).frame();
    let other_address = Build::ipv4(CLIENT, [10, 88, 0, 7])
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(segment(1, 80, SYN))
        .frame();
    let mut arp = tcp(1, SYN);
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut group = tcp(1, SYN);
    group[..6].fill(0xff);
    let fragment = build().transport(segment(1, 80, SYN)).payload(&[0; 64]).fragment(0, true).frame();
    let rows = [
        ("a port without a service", other_port, Verdict::ToHost),
        ("an address without a service", other_address, Verdict::ToHost),
        ("ARP", arp, Verdict::ToHost),
        ("a broadcast", group, Verdict::ToHost),
        ("a first fragment", fragment, Verdict::Transmit(INSIDE)),
    ];
    for (what, frame, expected) in rows {
        assert_eq!(lab.one(frame).verdict, expected, "{what}");
    }
    let counts = lab.director.frame_counts();
    assert_eq!((counts.received, counts.to_host, counts.transmitted), (5, 4, 1));
}
