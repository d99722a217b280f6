//! Frames that are broken, or that cannot be forwarded: at a director in this process.

use uvs::director::{DropReason, Verdict};
use uvs::wire::build::{Build, Transport};
use uvs::wire::ipv4;
use uvs::wire::transport::tcp_flags::{ACK, SYN};

use super::{Effect, Input, TABLE, Told};

#[allow(dead_code)]
#[path = "../../oracle/lab.rs"]
mod lab;

use lab::{CLIENTS, DIRECTOR, Lab, ROUTER, SERVERS};

const CLIENT: [u8; 4] = [10, 88, 128, 1];
const VIP: [u8; 4] = [10, 88, 0, 100];
/// The service, and another that has no real server.
const SERVED: u16 = 80;
const EMPTY: u16 = 81;
const CONNECTIONS: u16 = 16;
/// The client's port of the connection that there is.
const KNOWN: u16 = 4000;

fn to_service(port: u16, destination: u16, flags: u8) -> Build {
    Build::ipv4(CLIENT, VIP).source_mac(ROUTER.0).destination_mac(DIRECTOR.0).transport(Transport::tcp_with(
        port,
        destination,
        flags,
    ))
}

/// A call from a port that nothing else uses.
fn call() -> Vec<u8> {
    to_service(5000, SERVED, SYN).frame()
}

/// A call of which one byte is another.
fn call_with(position: usize, byte: u8) -> Vec<Vec<u8>> {
    let mut frame = call();
    assert_ne!(frame[position], byte);
    frame[position] = byte;
    vec![frame]
}

pub(super) fn nothing() -> Vec<Vec<u8>> {
    vec![Vec::new()]
}

pub(super) fn cut_in_the_link_header() -> Vec<Vec<u8>> {
    vec![call()[..10].to_vec()]
}

pub(super) fn cut_in_the_tcp_header() -> Vec<Vec<u8>> {
    vec![call()[..40].to_vec()]
}

pub(super) fn another_ip_version() -> Vec<Vec<u8>> {
    call_with(14, 0x55)
}

pub(super) fn ip_length_beyond_the_frame() -> Vec<Vec<u8>> {
    let mut frames = call_with(16, 0x40);
    assert!(ipv4::write_checksum(&mut frames[0][14..34]));
    frames
}

pub(super) fn wrong_ip_checksum() -> Vec<Vec<u8>> {
    let right = call()[24];
    call_with(24, !right)
}

pub(super) fn ipv6_extension_headers_galore() -> Vec<Vec<u8>> {
    let packet = Build::ipv6([1; 16], [2; 16]).destination_mac(DIRECTOR.0);
    vec![(0..20).fold(packet, |packet, _| packet.extension(60, &[])).frame()]
}

pub(super) fn tcp_header_too_short() -> Vec<Vec<u8>> {
    vec![to_service(5000, SERVED, SYN).transport(Transport::Raw { protocol: 6 }).payload(&[0; 10]).frame()]
}

pub(super) fn to_another_link_address() -> Vec<Vec<u8>> {
    call_with(5, !DIRECTOR.0[5])
}

pub(super) fn larger_than_the_way_out() -> Vec<Vec<u8>> {
    vec![to_service(5000, SERVED, SYN).payload(&[0; 1500]).frame()]
}

fn first_fragment() -> Vec<u8> {
    to_service(5000, SERVED, SYN).payload(&[0; 68]).fragment(0, true).frame()
}

pub(super) fn the_same_fragment_twice() -> Vec<Vec<u8>> {
    vec![first_fragment(), first_fragment()]
}

pub(super) fn fragments_that_overlap() -> Vec<Vec<u8>> {
    let later = to_service(5000, SERVED, SYN).transport(Transport::Raw { protocol: 6 });
    vec![first_fragment(), later.payload(&[1; 64]).fragment(64, true).frame()]
}

/// At most 50 clients are told at a time that nobody serves them.
pub(super) fn more_calls_than_answers() -> Vec<Vec<u8>> {
    (0..100).map(|port| to_service(5000 + port, EMPTY, SYN).frame()).collect()
}

/// Established ones, which make room for no other.
pub(super) fn more_connections_than_fit() -> Vec<Vec<u8>> {
    let connection = |port| [SYN, ACK].map(|flags| to_service(6000 + port, SERVED, flags).frame());
    (0..2 * CONNECTIONS).flat_map(connection).collect()
}

fn verdict(lab: &mut Lab, frame: &[u8]) -> Verdict {
    let outputs = lab.bench.feed(CLIENTS, frame, lab.bench.now()).unwrap();
    assert_eq!(outputs.len(), 1, "nothing has to wait here");
    assert!(lab.bench.is_conserved());
    outputs[0].verdict
}

fn is_forwarded(lab: &mut Lab, port: u16, flags: u8) -> bool {
    verdict(lab, &to_service(port, SERVED, flags).frame()) == Verdict::Transmit(SERVERS)
}

#[test]
fn frames_that_cannot_be_forwarded_are_counted_by_reason_and_change_nothing() {
    for (row, (input, told, effect)) in TABLE.iter().enumerate() {
        let Input::Frames(frames) = input else { continue };
        let Told::Counts(reason) = told else { panic!("row {row}: frames are counted") };
        let mut lab = Lab::with_connections(CONNECTIONS.into());
        let rules = format!(
            "-A -t 10.88.0.100:{SERVED} -s rr\n-a -t 10.88.0.100:{SERVED} -r 10.88.2.11:{SERVED} -g -w 1\n\
             -A -t 10.88.0.100:{EMPTY} -s rr\n"
        );
        assert_eq!(lab.ipvsadm("-R", rules.as_bytes()).status, 0);
        assert!(is_forwarded(&mut lab, KNOWN, SYN) && is_forwarded(&mut lab, KNOWN, ACK));
        for frame in frames() {
            verdict(&mut lab, &frame);
        }
        let counts = lab.bench.frame_counts();
        for other in DropReason::ALL {
            assert_eq!(
                counts.dropped_for(*other) > 0,
                other.name() == *reason,
                "row {row}, {told:?}: {counts:?}"
            );
        }
        assert!(is_forwarded(&mut lab, KNOWN, ACK), "row {row}: the connection that there was");
        match effect {
            Effect::GoesOn => assert!(is_forwarded(&mut lab, 7000, SYN), "row {row}: a new one"),
            Effect::KnownGoOn => assert!(!is_forwarded(&mut lab, 7000, SYN), "row {row}: a new one"),
            _ => panic!("row {row}: frames have no such effect"),
        }
        assert_eq!(lab.ipvsadm("-Sn", b"").stdout, rules, "row {row}");
    }
}
