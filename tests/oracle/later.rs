//! Recordings of what the director cannot do yet.

/// How one can tell that it cannot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sign {
    /// A command of the recording's beginning is refused, and this is named as what is missing.
    Refused(&'static str),
    /// Some packet is answered otherwise.
    Differs,
}

/// A feature, how to tell that it is missing, and the recordings that need it.
pub(crate) type Later = (&'static str, Sign, &'static [&'static str]);

use Sign::{Differs, Refused};

/// Of `cases`.
pub(crate) const CASES: &[Later] = &[
    ("the FTP helper", Refused("conntrack other than '0': the host's connection tracking"), &["ftp-nat"]),
    ("fragments put together before they are tunnelled", Differs, &["v6-frag-tun"]),
    ("synchronization", Refused("the synchronization daemon"), &["sync-master"]),
    (
        "SCTP associations that began elsewhere",
        Refused("sloppy_sctp other than '0': scheduling SCTP without INIT"),
        &["sctp-sloppy"],
    ),
    (
        "fragmenting what is too big",
        Differs,
        &["dr-ttl-tos-mtu", "tun-headers", "v6-tun-4in6", "v6-tun-gre-4in6", "v6-tun-gue-4in6"],
    ),
    ("answering what is too big", Differs, &["v6-dr-too-big", "v6-nat-too-big"]),
];

/// Of `seq`.
pub(crate) const SEQUENCES: &[Later] = &[];

/// Command lines of `text/errors.txt` that the kernel took or refused for reasons of its own, and that are refused here
/// for want of a feature.
pub(crate) const ERRORS: &[(&str, &str)] = &[
    ("ipvsadm -A -t 10.88.7.11:80 -s rr --pe sip", "the persistence engine 'sip' (--pe)"),
    ("ipvsadm --start-daemon master --mcast-interface nosuch0", "the synchronization daemon"),
    ("ipvsadm --start-daemon master", "the synchronization daemon"),
    ("ipvsadm --stop-daemon backup", "the synchronization daemon"),
    (
        "ipvsadm --start-daemon master --mcast-interface dummy0 --syncid 1; \
         ipvsadm --start-daemon master --mcast-interface dummy0 --syncid 1",
        "the synchronization daemon",
    ),
    ("ipvsadm --stop-daemon master", "the synchronization daemon"),
];
