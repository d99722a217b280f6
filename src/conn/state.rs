//! States and timeouts of connections, as tables.
//!
//! The numbers are the kernel's, which other directors exchange. Source: `ip_vs_proto_tcp.c`,
//! `ip_vs_proto_udp.c`.

use super::sctp;
use crate::types::{Duration, Protocol};
use crate::wire::transport::tcp_flags;

/// A connection's state: a number whose meaning depends on the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State(pub u8);

/// TCP states.
impl State {
    /// Every protocol's first.
    pub const NONE: Self = Self(0);
    /// Both sides have spoken.
    pub const ESTABLISHED: Self = Self(1);
    /// The server sent the first SYN.
    pub const SYN_SENT: Self = Self(2);
    /// The client sent the first SYN.
    pub const SYN_RECV: Self = Self(3);
    /// One side has ended.
    pub const FIN_WAIT: Self = Self(4);
    /// Both have.
    pub const TIME_WAIT: Self = Self(5);
    /// Reset, or never well-formed.
    pub const CLOSE: Self = Self(6);
    /// The client ended first.
    pub const CLOSE_WAIT: Self = Self(7);
    /// Waiting for the last acknowledgement.
    pub const LAST_ACK: Self = Self(8);
    /// Not reached by any event.
    pub const LISTEN: Self = Self(9);
    /// SYN and ACK were seen under `secure_tcp`.
    pub const SYNACK: Self = Self(10);

    /// UDP's only state (IP_VS_UDP_S_NORMAL), which shares its number with NONE.
    pub const UDP: Self = Self(0);
}

const TCP_STATES: usize = 11;
const TCP_NAMES: [&str; TCP_STATES] = [
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
];

impl State {
    /// As `ipvsadm -Lc` prints it.
    pub fn name(self, protocol: u8) -> &'static str {
        match Protocol::from_number(protocol) {
            Some(Protocol::Tcp) => TCP_NAMES.get(usize::from(self.0)).copied().unwrap_or("ERR!"),
            Some(Protocol::Udp) => "UDP",
            Some(Protocol::Sctp) => sctp::NAMES.get(usize::from(self.0)).copied().unwrap_or("ERR!"),
            None => "NONE",
        }
    }

    /// Whether a connection in this state counts as active: TCP from its first SYN to its first FIN
    /// (`tcp_state_active_table`), SCTP while established, UDP never.
    #[inline]
    pub const fn is_active(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => {
                matches!(self, Self::ESTABLISHED | Self::SYN_SENT | Self::SYN_RECV | Self::SYNACK)
            }
            Protocol::Sctp => matches!(self, Self::SCTP_ESTABLISHED),
            Protocol::Udp => false,
        }
    }
}

/// Where a packet comes from, for the state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the client, and the director sees replies as well.
    Input = 0,
    /// From the real server.
    Output = 1,
    /// From the client, and the director sees no replies (DR, TUN).
    InputOnly = 2,
}

/// What a TCP segment does to the state: its most telling flag (`tcp_state_idx`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpEvent {
    /// SYN, with or without ACK.
    Syn = 0,
    /// FIN.
    Fin = 1,
    /// ACK alone.
    Ack = 2,
    /// RST.
    Rst = 3,
    /// None of these.
    Other = 4,
}

impl TcpEvent {
    /// The event of a segment with these flags: RST before SYN before FIN before ACK.
    #[inline]
    pub const fn of(flags: u8) -> Self {
        // Read from a table: which of the flags a segment has is nothing to foresee.
        const OF: [TcpEvent; 32] = {
            let mut events = [TcpEvent::Other; 32];
            let mut flags = 0;
            while flags < events.len() {
                events[flags] = TcpEvent::most_telling(flags as u8);
                flags += 1;
            }
            events
        };
        OF[(flags & 31) as usize]
    }

    const fn most_telling(flags: u8) -> Self {
        if flags & tcp_flags::RST != 0 {
            Self::Rst
        } else if flags & tcp_flags::SYN != 0 {
            Self::Syn
        } else if flags & tcp_flags::FIN != 0 {
            Self::Fin
        } else if flags & tcp_flags::ACK != 0 {
            Self::Ack
        } else {
            Self::Other
        }
    }
}

/// The TCP state machine as data: the next state for each direction, event and state.
///
/// Rows are SYN, FIN, ACK, RST; columns are the states in the order of their numbers, so a row reads like the
/// kernel's table (`tcp_states`).
#[derive(Clone, Copy, Debug)]
pub struct StateTable([[[u8; TCP_STATES]; 4]; 3]);

const ES: u8 = 1;
const SS: u8 = 2;
const SR: u8 = 3;
const FW: u8 = 4;
const TW: u8 = 5;
const CL: u8 = 6;
const CW: u8 = 7;
const LA: u8 = 8;
const LI: u8 = 9;

impl StateTable {
    /// The table that holds unless `secure_tcp` is on.
    #[rustfmt::skip]
    pub const NORMAL: Self = Self([
        // from:  NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
        [   /* Input */
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
        ],
        [   /* Output */
            [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
            [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
            [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
        ],
        [   /* InputOnly */
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        ],
    ]);

    /// The state after `event` in `direction`.
    #[inline]
    pub fn next(&self, state: State, direction: Direction, event: TcpEvent) -> State {
        let row = match event {
            TcpEvent::Other => return State::CLOSE,
            event => &self.0[direction as usize][event as usize],
        };
        row.get(usize::from(state.0)).map_or(State::CLOSE, |&next| State(next))
    }
}

/// How long a connection lives in each state after its last packet.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// By TCP state.
    pub tcp: [Duration; TCP_STATES],
    /// UDP.
    pub udp: Duration,
    /// By SCTP state.
    pub sctp: [Duration; 14],
}

impl Default for Timeouts {
    /// The kernel's defaults (`tcp_timeouts`, `udp_timeouts`).
    fn default() -> Self {
        let seconds = [2, 15 * 60, 2 * 60, 60, 2 * 60, 2 * 60, 10, 60, 30, 2 * 60, 2 * 60];
        Self {
            tcp: seconds.map(Duration::from_secs),
            udp: Duration::from_secs(5 * 60),
            sctp: sctp::timeouts(),
        }
    }
}

impl Timeouts {
    /// The timeout of a connection of `protocol` in `state`.
    #[inline]
    pub fn of(&self, protocol: u8, state: State) -> Duration {
        const TCP: u8 = Protocol::Tcp as u8;
        const UDP: u8 = Protocol::Udp as u8;
        match protocol {
            TCP => self.tcp.get(usize::from(state.0)).copied().unwrap_or(self.tcp[0]),
            UDP => self.udp,
            _ => self.sctp.get(usize::from(state.0)).copied().unwrap_or(self.sctp[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: u8 = 0;
    const SA: u8 = 10;

    #[test]
    fn flags_rank_rst_syn_fin_ack() {
        let rows = [
            (0x02, TcpEvent::Syn),
            (0x12, TcpEvent::Syn),
            (0x03, TcpEvent::Syn),
            (0x06, TcpEvent::Rst),
            (0x11, TcpEvent::Fin),
            (0x18, TcpEvent::Ack),
            (0x08, TcpEvent::Other),
            (0x00, TcpEvent::Other),
        ];
        for (flags, event) in rows {
            assert_eq!(TcpEvent::of(flags), event, "{flags:#x}");
        }
    }

    /// The table of the semantics page, written the other way round: by current state, then direction.
    #[test]
    fn the_table_reads_as_documented() {
        use TcpEvent::{Ack, Fin, Rst, Syn};
        let rows: [(u8, [[u8; 4]; 3]); TCP_STATES] = [
            (NO, [[SR, CL, ES, CL], [SS, TW, ES, CL], [SR, CL, ES, CL]]),
            (ES, [[ES, CW, ES, CL], [ES, FW, ES, CL], [ES, FW, ES, CL]]),
            (SS, [[ES, SS, SS, CL], [SS, SS, SS, SS], [ES, SS, SS, CL]]),
            (SR, [[SR, TW, ES, SR], [SR, TW, ES, CL], [SR, TW, ES, SR]]),
            (FW, [[SR, TW, FW, CL], [SS, FW, FW, CL], [SR, FW, FW, CL]]),
            (TW, [[SR, TW, TW, CL], [SS, TW, TW, TW], [SR, TW, TW, CL]]),
            (CL, [[SR, CL, CL, CL], [SS, CL, CL, CL], [SR, CL, CL, CL]]),
            (CW, [[SR, CW, CW, CL], [SS, TW, CW, CL], [SR, CW, CW, CL]]),
            (LA, [[SR, LA, CL, LA], [SS, LA, LA, CL], [SR, LA, CL, LA]]),
            (LI, [[SR, LI, LI, LI], [LI, LI, ES, CL], [SR, LI, LI, LI]]),
            (SA, [[SR, TW, ES, SR], [SR, TW, ES, CL], [SR, TW, ES, CL]]),
        ];
        let directions = [Direction::Input, Direction::Output, Direction::InputOnly];
        for (from, expected) in rows {
            for (direction, row) in directions.into_iter().zip(expected) {
                for (event, next) in [Syn, Fin, Ack, Rst].into_iter().zip(row) {
                    let got = StateTable::NORMAL.next(State(from), direction, event);
                    assert_eq!(got, State(next), "{} {direction:?} {event:?}", State(from).name(6));
                }
            }
        }
        let other = StateTable::NORMAL.next(State::ESTABLISHED, Direction::InputOnly, TcpEvent::Other);
        assert_eq!(other, State::CLOSE);
    }

    #[test]
    fn default_timeouts_are_the_kernels() {
        let timeouts = Timeouts::default();
        assert_eq!(timeouts.of(6, State::ESTABLISHED).as_secs(), 900);
        assert_eq!(timeouts.of(6, State::CLOSE).as_secs(), 10);
        assert_eq!(timeouts.of(17, State::UDP).as_secs(), 300);
    }
}
