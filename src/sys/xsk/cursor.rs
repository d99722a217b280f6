//! Ring index arithmetic, for either side of any ring.

/// One side's place in a ring of a power of two slots, in wrapping 32-bit indices.
///
/// A consumer may go from `position` (its own index) up to `limit` (the producer's index). A producer may go
/// from `position` (its own index) up to `limit` (the consumer's index plus the ring's size). Seen so, both
/// sides do the same arithmetic. Indices only ever grow, and wrap; slots are their low bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    position: u32,
    limit: u32,
    size: u32,
}

impl Cursor {
    /// The cursor of the side that takes entries out of a ring of `size` slots.
    pub(super) fn consumer(size: u32, consumer: u32, producer: u32) -> Self {
        debug_assert!(size.is_power_of_two());
        Self { position: consumer, limit: producer, size }
    }

    /// The cursor of the side that puts entries into a ring of `size` slots.
    pub(super) fn producer(size: u32, producer: u32, consumer: u32) -> Self {
        debug_assert!(size.is_power_of_two());
        Self { position: producer, limit: consumer.wrapping_add(size), size }
    }

    /// Slots from here to the limit. None where the peer's index is impossible: shared memory is hostile,
    /// and a ring that stands still is better than one that is read outside its entries.
    pub(super) fn ready(&self) -> u32 {
        let distance = self.limit.wrapping_sub(self.position);
        if distance <= self.size { distance } else { 0 }
    }

    /// Takes note of the peer's index, for a consumer.
    pub(super) fn see_producer(&mut self, producer: u32) {
        self.limit = producer;
    }

    /// Takes note of the peer's index, for a producer.
    pub(super) fn see_consumer(&mut self, consumer: u32) {
        self.limit = consumer.wrapping_add(self.size);
    }

    /// The slot that the cursor stands on, always below the ring's size.
    pub(super) fn slot(&self) -> usize {
        (self.position & (self.size - 1)) as usize
    }

    /// Goes on by one slot.
    pub(super) fn advance(&mut self) {
        self.position = self.position.wrapping_add(1);
    }

    /// This side's own index, to publish.
    pub(super) fn position(&self) -> u32 {
        self.position
    }

    /// Slots in the ring.
    pub(super) fn size(&self) -> u32 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A ring over plain memory behaves as a bounded queue, from any start index, at any wrap.
        #[test]
        fn two_cursors_make_a_bounded_queue(
            start in prop_oneof![any::<u32>(), (u32::MAX - 40)..=u32::MAX],
            size_log in 0_u32..6,
            steps in proptest::collection::vec((any::<bool>(), 0_u32..80), 1..200),
        ) {
            let size = 1 << size_log;
            let mut memory = vec![0_u64; size as usize];
            let mut producer = Cursor::producer(size, start, start);
            let mut consumer = Cursor::consumer(size, start, start);
            let mut model = std::collections::VecDeque::new();
            let mut next = 1_u64;
            for (produce, count) in steps {
                if produce {
                    producer.see_consumer(consumer.position());
                    prop_assert_eq!(producer.ready() as usize, size as usize - model.len());
                    for _ in 0..count.min(producer.ready()) {
                        memory[producer.slot()] = next;
                        model.push_back(next);
                        next += 1;
                        producer.advance();
                    }
                } else {
                    consumer.see_producer(producer.position());
                    prop_assert_eq!(consumer.ready() as usize, model.len());
                    for _ in 0..count.min(consumer.ready()) {
                        prop_assert_eq!(Some(memory[consumer.slot()]), model.pop_front());
                        consumer.advance();
                    }
                }
            }
        }

        /// Whatever the peer's index, no more slots are ready than the ring has.
        #[test]
        fn a_hostile_peer_index_readies_at_most_the_ring(
            own in any::<u32>(), peer in any::<u32>(), size_log in 0_u32..16,
        ) {
            let size = 1 << size_log;
            let mut consumer = Cursor::consumer(size, own, own);
            consumer.see_producer(peer);
            prop_assert!(consumer.ready() <= size);
            prop_assert_eq!(consumer.ready() > 0, (1..=size).contains(&peer.wrapping_sub(own)));
            let mut producer = Cursor::producer(size, own, own);
            producer.see_consumer(peer);
            prop_assert!(producer.ready() <= size);
            prop_assert_eq!(producer.ready() > 0, own.wrapping_sub(peer) < size);
            prop_assert!(producer.slot() < size as usize);
        }
    }
}
