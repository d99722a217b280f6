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
    (
        "NAT",
        Refused("NAT (-m)"),
        &[
            "conn-reuse-nat-1",
            "frag-nat",
            "ftp-nat",
            "icmp-nat",
            "nat-icmp-send",
            "nat-tcp-states",
            "udp-nat",
        ],
    ),
    (
        "tunnelling",
        Refused("tunnelling (-i)"),
        &["tun-gre", "tun-gue", "tun-gue-csum", "tun-headers", "udp-tun"],
    ),
    (
        "persistence",
        Refused("persistence (-p)"),
        &["persist-expiry", "persist-ftp-21", "persist-fwmark", "persist-pcc", "persist-ppc"],
    ),
    ("one-packet scheduling", Refused("one-packet scheduling (-o)"), &["udp-ops"]),
    ("synchronization", Refused("the synchronization daemon"), &["sync-master"]),
    ("fragmenting what is too big", Differs, &["dr-ttl-tos-mtu"]),
    ("forwarding ICMP errors", Differs, &["icmp-dr"]),
    ("forwarding fragments", Differs, &["frag-dr"]),
];

/// Of `seq`.
pub(crate) const SEQUENCES: &[Later] = &[
    ("marks and dh", Refused("the scheduler 'dh'"), &["dh-321-fwm", "dh-eq3-fwm"]),
    ("marks and lblc", Refused("the scheduler 'lblc'"), &["lblc-321-fwm", "lblc-eq3-fwm"]),
    ("marks and lblcr", Refused("the scheduler 'lblcr'"), &["lblcr-eq3-fwm"]),
    ("fo", Refused("the scheduler 'fo'"), &["fo-321", "fo-321-mix", "fo-eq3", "fo-eq3-mix", "fo-five"]),
    ("lc", Refused("the scheduler 'lc'"), &["lc-321", "lc-321-mix", "lc-eq3", "lc-eq3-mix", "lc-five"]),
    (
        "mh",
        Refused("the scheduler 'mh'"),
        &[
            "mh-321",
            "mh-321-fwm",
            "mh-eq3",
            "mh-eq3-fwm",
            "mh-eq3-mh-fallback",
            "mh-eq3-mh-port",
            "mh-five",
            "mh-five-mh-fallback",
        ],
    ),
    ("nq", Refused("the scheduler 'nq'"), &["nq-321", "nq-321-mix", "nq-eq3", "nq-eq3-mix", "nq-five"]),
    (
        "ovf",
        Refused("the scheduler 'ovf'"),
        &["ovf-321", "ovf-321-mix", "ovf-eq3", "ovf-eq3-mix", "ovf-five"],
    ),
    (
        "sed",
        Refused("the scheduler 'sed'"),
        &["sed-321", "sed-321-mix", "sed-eq3", "sed-eq3-mix", "sed-five"],
    ),
];

/// Command lines of `text/errors.txt` that the kernel took or refused for reasons of its own, and that are refused here
/// for want of a feature.
pub(crate) const ERRORS: &[(&str, &str)] = &[
    ("ipvsadm -a -t 10.88.0.103:80 -r 10.88.2.12:99 -m", "NAT (-m)"),
    ("ipvsadm -A -u 10.88.7.3:0 -s rr -p", "persistence (-p)"),
    ("ipvsadm -A -t 10.88.7.5:80 -s rr -p 60 -M 255.0.255.0", "persistence (-p)"),
    ("ipvsadm -a -t 10.88.0.100:80 -r [fd88::11]:80 -i", "tunnelling (-i)"),
    ("ipvsadm -a -t [fd88::100]:80 -r 10.88.2.11:80 -i", "tunnelling (-i)"),
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
