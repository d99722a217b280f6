//! Any split of a sequence of frames into batches gives the same result. (One thing aside: in a table that is
//! full to the last record, a record that was just given up can be used again only in the next batch.)

use proptest::prelude::*;

use super::*;

type Outcome = (Vec<(Verdict, Vec<u8>)>, Vec<(u16, State)>, FrameCounts);

fn outcome(frames: &[(u16, u8, bool)], sizes: &[usize]) -> Outcome {
    let mut lab = Lab::with_capacity(3, 200);
    let bytes: Vec<Vec<u8>> = frames
        .iter()
        .map(|&(port, flags, is_udp)| if is_udp { udp(port) } else { tcp(port, flags) })
        .collect();
    let (mut rest, mut sizes, mut out) = (&bytes[..], sizes.iter().cycle(), Vec::new());
    while !rest.is_empty() {
        let size = sizes.next().map_or(1, |&size| size.clamp(1, BATCH_SIZE)).min(rest.len());
        let (now, later) = rest.split_at(size);
        out.extend(lab.batch(now).into_iter().map(|sent| (sent.verdict, sent.frame)));
        rest = later;
    }
    let mut states = lab.states();
    states.sort_by_key(|(port, state)| (*port, state.0));
    (out, states, lab.director.frame_counts())
}

proptest! {
    #[test]
    fn batches_do_not_matter(
        frames in prop::collection::vec(
            (1_u16..16, prop::sample::select(vec![SYN, ACK, FIN | ACK, RST, SYN | ACK, 0]), prop::bool::weighted(0.2)),
            1..150,
        ),
        sizes in prop::collection::vec(1_usize..65, 1..8),
    ) {
        prop_assert_eq!(outcome(&frames, &[1]), outcome(&frames, &sizes));
    }
}
