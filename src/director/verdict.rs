//! What becomes of a frame.

use crate::types::PortId;

/// What the director decided about a frame. Every frame gets exactly one, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not decided yet: a frame before the director saw it.
    Undecided,
    /// Send it out of this port, to a real server or, as a reply, to a client.
    Transmit(PortId),
    /// Send this frame, which the director made of the one it received, back where that came from.
    Reply(PortId),
    /// Set aside by the director until it knows more; it comes up again in a later batch.
    Held,
    /// Not ours: the host's own stack is to see it.
    ToHost,
    /// Nothing more happens to it.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a frame was dropped. Closed: a frame that is dropped is dropped for exactly one of these.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason's name in `uvs stats`, replay summaries and tests.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its Ethernet header, or than what that announces.
    TruncatedFrame = "truncated-frame",
    /// An IPv4 header that is too short, has a wrong version, or a total length beyond the frame.
    BadIpv4Header = "bad-ipv4-header",
    /// The IPv4 header's checksum is wrong.
    BadIpv4Checksum = "bad-ipv4-checksum",
    /// An IPv6 header or extension header that is cut off, or a chain of them over the limit.
    BadIpv6Header = "bad-ipv6-header",
    /// A TCP, UDP or SCTP header that is cut off (also by the end of a first fragment) or contradicts itself.
    BadTransportHeader = "bad-transport-header",
    /// Sent to a link address that is not this host's.
    ForeignLinkAddress = "foreign-link-address",
    /// A fragment that was there already.
    FragmentDuplicate = "fragment-duplicate",
    /// A fragment that contradicts another one of its datagram, and every further one of that.
    FragmentOverlap = "fragment-overlap",
    /// A fragment that waited for its datagram's first in vain.
    FragmentWithoutFirst = "fragment-without-first",
    /// Too many fragments already wait for their first.
    FragmentQueueFull = "fragment-queue-full",
    /// The first fragment of an SCTP packet whose port NAT would change: its checksum cannot be made to fit, as it spans
    /// fragments that nobody has seen yet.
    ChecksumAcrossFragments = "checksum-across-fragments",
    /// The service has no real server that may take a new connection.
    NoRealServer = "no-real-server",
    /// The connection's real server was removed, and `expire_nodest_conn` is 0.
    RealServerGone = "real-server-gone",
    /// TTL or hop limit would become zero.
    TtlExpired = "ttl-expired",
    /// Larger than the next hop's MTU and not to be fragmented.
    TooBig = "too-big",
    /// A tunnel's packet that is too big for its way and may be cut: the director does not cut packets.
    MustFragment = "must-fragment",
    /// The way to a tunnelled real server takes too small packets for a tunnel.
    TunnelMtuTooSmall = "tunnel-mtu-too-small",
    /// With a tunnel's headers it would be longer than a packet can be.
    TooLongForTunnel = "too-long-for-tunnel",
    /// For a tunnel, and left whole for a network card to cut: segmentation offloading is to be switched off where it
    /// comes from.
    Unsegmented = "unsegmented",
    /// The host has no address of its own to send a tunnel's packets from.
    NoTunnelSource = "no-tunnel-source",
    /// No free connection record, bucket or timer.
    ConnectionTableFull = "connection-table-full",
    /// No room for the connection template of a new client, and none that could give way.
    TemplateTableFull = "template-table-full",
    /// The frame's chunk has no room for the new headers.
    NoRoom = "no-room",
    /// The kernel has no route to the real server.
    NoRoute = "no-route",
    /// The route to the real server leads out of an interface that the director was not given.
    ForeignInterface = "foreign-interface",
    /// The real server's link address could not be resolved in time.
    NeighbourFailed = "neighbour-failed",
    /// Too many frames already wait for a link address.
    NeighbourQueueFull = "neighbour-queue-full",
    /// The port out is down.
    PortDown = "port-down",
    /// What a masqueraded real server sends from a service's port without a connection, where `nat_icmp_send` is 1.
    UnknownAnswer = "unknown-answer",
    /// A packet in mid-connection that an earlier, killed director may have known: neither scheduled nor
    /// shown to the host, which would reset it.
    UnknownAfterRestart = "unknown-after-restart",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_their_counters_indices_and_have_distinct_names() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        let names: std::collections::HashSet<_> =
            DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
