//! The SCTP state machine as data. Source: `ip_vs_proto_sctp.c`.

use super::state::{Direction, State};
use crate::types::Duration;

const STATES: usize = 14;
const EVENTS: usize = 10;

/// As `ipvsadm -Lc` prints them.
pub(super) const NAMES: [&str; STATES] = [
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
];

/// SCTP states.
impl State {
    /// The client began.
    pub const SCTP_INIT1: Self = Self(1);
    /// The client began again.
    pub const SCTP_INIT: Self = Self(2);
    /// The association was refused.
    pub const SCTP_REJECTED: Self = Self(12);
    /// Both ends have what they need to send data.
    pub const SCTP_ESTABLISHED: Self = Self(8);
    /// The association is over.
    pub const SCTP_CLOSED: Self = Self(13);
}

/// How long a connection lives in each state after its last packet (`sctp_timeouts`).
pub(super) fn timeouts() -> [Duration; STATES] {
    [2, 4, 61, 61, 61, 61, 61, 61, 15 * 60, 61, 61, 61, 4, 61].map(Duration::from_secs)
}

/// What a packet does to the state: the type of its first chunk (`sctp_events`). Chunks that carry no meaning here,
/// such as SACK and HEARTBEAT, count as data. RFC 9260, section 3.2 has the numbers.
fn event(chunk: u8, abort_follows: bool) -> usize {
    if abort_follows {
        return 9;
    }
    match chunk {
        1 => 1,
        2 => 2,
        10 => 3,
        11 => 4,
        7 => 5,
        8 => 6,
        14 => 7,
        9 => 8,
        6 => 9,
        _ => 0,
    }
}

/// The state after a packet whose first chunk is `chunk`.
#[inline]
pub fn next(state: State, direction: Direction, chunk: u8, abort_follows: bool) -> State {
    let row = &TABLE[direction as usize][event(chunk, abort_follows)];
    row.get(usize::from(state.0)).map_or(State::SCTP_CLOSED, |&next| State(next))
}

const I1: u8 = 1;
const IN: u8 = 2;
const CS: u8 = 3;
const CR: u8 = 4;
const CW: u8 = 5;
const CO: u8 = 6;
const CE: u8 = 7;
const ES: u8 = 8;
const SS: u8 = 9;
const SR: u8 = 10;
const SA: u8 = 11;
const RJ: u8 = 12;
const CL: u8 = 13;

/// The next state by direction, event and state; columns in the order of the states' numbers (`sctp_states`).
#[rustfmt::skip]
const TABLE: [[[u8; STATES]; EVENTS]; 3] = [
    // from:                 NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    [   /* Input */
        /* data */              [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* INIT */              [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
        /* INIT-ACK */          [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ECHO */       [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ACK */        [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
        /* SHUTDOWN */          [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
        /* SHUTDOWN-ACK */      [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
        /* SHUTDOWN-COMPLETE */ [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
        /* ERROR */             [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
        /* ABORT */             [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
    [   /* Output */
        /* data */              [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* INIT */              [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
        /* INIT-ACK */          [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ECHO */       [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ACK */        [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
        /* SHUTDOWN */          [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
        /* SHUTDOWN-ACK */      [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
        /* SHUTDOWN-COMPLETE */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* ERROR */             [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* ABORT */             [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
    [   /* InputOnly */
        /* data */              [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* INIT */              [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
        /* INIT-ACK */          [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ECHO */       [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* COOKIE-ACK */        [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
        /* SHUTDOWN */          [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
        /* SHUTDOWN-ACK */      [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
        /* SHUTDOWN-COMPLETE */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
        /* ERROR */             [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
        /* ABORT */             [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    const NO: u8 = 0;
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const COOKIE_ECHO: u8 = 10;
    const SHUTDOWN_COMPLETE: u8 = 14;
    const DATA: u8 = 0;

    fn life(direction: Direction, chunks: &[u8]) -> Vec<&'static str> {
        let mut state = State::NONE;
        let step = |&chunk: &u8| {
            state = next(state, direction, chunk, false);
            NAMES[usize::from(state.0)]
        };
        chunks.iter().map(step).collect()
    }

    #[test]
    fn an_association_seen_from_the_client_alone() {
        let chunks = [INIT, COOKIE_ECHO, DATA, SHUTDOWN, SHUTDOWN_COMPLETE];
        let states = ["INIT1", "ESTABLISHED", "ESTABLISHED", "S-RECEIVED", "CLOSED"];
        assert_eq!(life(Direction::InputOnly, &chunks), states);
        assert_eq!(
            life(Direction::InputOnly, &[INIT, INIT, ABORT, INIT]),
            ["INIT1", "INIT", "CLOSED", "INIT"]
        );
        assert_eq!(life(Direction::InputOnly, &[INIT, COOKIE_ECHO, SHUTDOWN_ACK])[2], "CLOSED");
    }

    #[test]
    fn an_abort_behind_a_cookie_counts() {
        let established = next(State(1), Direction::InputOnly, COOKIE_ECHO, false);
        assert_eq!(established, State::SCTP_ESTABLISHED);
        assert_eq!(next(State(1), Direction::InputOnly, COOKIE_ECHO, true), State::SCTP_CLOSED);
    }

    #[test]
    fn chunks_without_meaning_are_data_and_states_without_number_close() {
        for chunk in [3, 4, 5, 12, 13, 64, 255] {
            assert_eq!(next(State::NONE, Direction::Input, chunk, false), State::SCTP_ESTABLISHED);
        }
        assert_eq!(next(State(200), Direction::Input, DATA, false), State::SCTP_CLOSED);
        let used: std::collections::BTreeSet<u8> = TABLE.iter().flatten().flatten().copied().collect();
        assert!(used.iter().all(|&state| usize::from(state) < STATES) && !used.contains(&NO));
    }
}
