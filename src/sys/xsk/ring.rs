//! Rings shared with the kernel: one side puts entries in, the other takes them out.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};

use super::cursor::Cursor;
use crate::sys::memory::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// What a slot of a ring holds. Slots are read and written as atomics: the kernel has them too.
///
/// # Safety
/// Any bytes must be a valid `Self`, and `Self` must hold nothing but atomics.
pub(super) unsafe trait Slot {
    /// The value of a slot, taken out of shared memory.
    type Value: Copy;

    /// Reads the slot once.
    fn load(&self) -> Self::Value;

    /// Writes the slot.
    fn store(&self, value: Self::Value);
}

// SAFETY: it is an atomic integer. The trait is unsafe because safe code cannot state what the kernel writes.
unsafe impl Slot for AtomicU64 {
    type Value = u64;

    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }

    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Relaxed);
    }
}

/// A frame in a receive or transmit ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor {
    /// Offset in the UMEM of the frame's first byte.
    pub(super) address: u64,
    /// Bytes in the frame.
    pub(super) length: u32,
    /// `XDP_PKT_CONTD` and the like.
    pub(super) options: u32,
}

/// `struct xdp_desc` of linux/if_xdp.h, as the kernel and we share it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct DescriptorSlot {
    address: AtomicU64,
    length: AtomicU32,
    options: AtomicU32,
}

// SAFETY: it is three atomic integers without padding. See the implementation for `AtomicU64`.
unsafe impl Slot for DescriptorSlot {
    type Value = Descriptor;

    fn load(&self) -> Descriptor {
        Descriptor {
            address: self.address.load(Ordering::Relaxed),
            length: self.length.load(Ordering::Relaxed),
            options: self.options.load(Ordering::Relaxed),
        }
    }

    fn store(&self, value: Descriptor) {
        self.address.store(value.address, Ordering::Relaxed);
        self.length.store(value.length, Ordering::Relaxed);
        self.options.store(value.options, Ordering::Relaxed);
    }
}

/// Memory that holds a ring: its indices, its flags and its slots.
#[derive(Debug)]
struct Memory<S> {
    start: NonNull<u8>,
    length: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    slots: NonNull<S>,
    size: u32,
    owned: PhantomData<S>,
}

// SAFETY: the memory is owned by this value, is accessed as atomics only, and has no thread affinity; the raw
// pointers are what keeps the compiler from seeing it.
unsafe impl<S: Send> Send for Memory<S> {}

impl<S: Slot> Memory<S> {
    /// Bytes that a ring of `size` slots takes.
    fn bytes(offsets: &XdpRingOffset, size: u32) -> io::Result<usize> {
        let slots = usize::try_from(offsets.desc).map_err(|_| io::ErrorKind::InvalidData)?;
        (size as usize)
            .checked_mul(size_of::<S>())
            .and_then(|bytes| bytes.checked_add(slots))
            .ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Maps a socket's ring, at `page_offset` as linux/if_xdp.h numbers the rings.
    fn map(socket: BorrowedFd<'_>, page_offset: u64, offsets: &XdpRingOffset, size: u32) -> io::Result<Self> {
        let length = Self::bytes(offsets, size)?;
        // SAFETY: a new shared mapping at an address of the kernel's choosing touches no existing memory.
        // There is no safe mmap.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::POPULATE,
                socket,
                page_offset,
            )?
        };
        Self::over(start, length, offsets, size)
    }

    /// Takes over `length` mapped bytes at `start`.
    fn over(
        start: *mut core::ffi::c_void,
        length: usize,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let at = |offset: u64, bytes: usize, align: usize| {
            let offset = usize::try_from(offset).ok()?;
            (offset.is_multiple_of(align) && offset.checked_add(bytes)? <= length).then_some(offset)
        };
        let index = |offset| {
            // SAFETY: `at` made sure that the word lies inside the mapping. Pointers into a mapping are what
            // safe code cannot make.
            at(offset, 4, 4).map(|offset| unsafe { start.add(offset).cast::<AtomicU32>() })
        };
        let (Some(producer), Some(consumer), Some(slots)) = (
            index(offsets.producer),
            index(offsets.consumer),
            at(offsets.desc, size as usize * size_of::<S>(), align_of::<S>()),
        ) else {
            // SAFETY: the range was mapped for this ring and nothing points into it. As for mapping it.
            let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), length) };
            return Err(io::ErrorKind::InvalidData.into());
        };
        // SAFETY: `at` made sure that all slots lie inside the mapping, aligned.
        let slots = unsafe { start.add(slots).cast::<S>() };
        let flags = offsets.flags.and_then(index);
        Ok(Self { start, length, producer, consumer, flags, slots, size, owned: PhantomData })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: an aligned word inside the mapping, which lives as long as `self`; any bytes are a valid
        // atomic. Safe code cannot refer into a mapping.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> XdpRingFlags {
        // SAFETY: as for `producer`.
        let flags = self.flags.map_or(0, |flags| unsafe { flags.as_ref() }.load(Ordering::Relaxed));
        XdpRingFlags::from_bits_retain(flags)
    }

    fn slots(&self) -> &[S] {
        // SAFETY: `size` slots from here lie aligned inside the mapping, which lives as long as `self`; `Slot`
        // promises that any bytes are valid and that all access is atomic.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr(), self.size as usize) }
    }
}

impl<S> Drop for Memory<S> {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this ring, and what points into it dies with it.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Our side of a ring that we fill.
#[derive(Debug)]
pub(super) struct Producer<S> {
    memory: Memory<S>,
    cursor: Cursor,
}

impl<S: Slot> Producer<S> {
    /// Maps the socket's ring of `size` slots, a power of two.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        Ok(Self::new(Memory::map(socket, page_offset, offsets, size)?))
    }

    fn new(memory: Memory<S>) -> Self {
        let producer = memory.producer().load(Ordering::Relaxed);
        let consumer = memory.consumer().load(Ordering::Acquire);
        let cursor = Cursor::producer(memory.size, producer, consumer);
        Self { memory, cursor }
    }

    /// Slots in the ring.
    pub(super) fn size(&self) -> u32 {
        self.cursor.size()
    }

    /// Slots free for [`push`](Self::push). Looks at the kernel's index only where fewer than `wanted` are
    /// known to be.
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        if self.cursor.ready() < wanted {
            // Acquire: the kernel has read a slot before it says so; we write it after we know.
            self.cursor.see_consumer(self.memory.consumer().load(Ordering::Acquire));
        }
        self.cursor.ready()
    }

    /// Puts an entry in, unseen by the kernel until [`submit`](Self::submit). Says false where the ring is full.
    #[must_use]
    pub(super) fn push(&mut self, value: S::Value) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        self.memory.slots()[self.cursor.slot()].store(value);
        self.cursor.advance();
        true
    }

    /// Shows the kernel every entry pushed.
    pub(super) fn submit(&mut self) {
        // Release: the slots' contents are visible before the index that covers them.
        self.memory.producer().store(self.cursor.position(), Ordering::Release);
    }

    /// Entries submitted that the kernel has not taken yet.
    pub(super) fn untaken(&self) -> u32 {
        let consumer = self.memory.consumer().load(Ordering::Acquire);
        self.memory.producer().load(Ordering::Relaxed).wrapping_sub(consumer).min(self.size())
    }

    /// Whether the kernel has to be called for it to look at the ring.
    pub(super) fn needs_wakeup(&self) -> bool {
        // The kernel sets the flag, then looks at the ring once more; we wrote the ring and now look at the
        // flag. Without the fence both could miss what the other did, and the ring would sleep.
        fence(Ordering::SeqCst);
        self.memory.flags().contains(XdpRingFlags::XDP_RING_NEED_WAKEUP)
    }
}

/// Our side of a ring that the kernel fills.
#[derive(Debug)]
pub(super) struct Consumer<S> {
    memory: Memory<S>,
    cursor: Cursor,
}

impl<S: Slot> Consumer<S> {
    /// Maps the socket's ring of `size` slots, a power of two.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        Ok(Self::new(Memory::map(socket, page_offset, offsets, size)?))
    }

    fn new(memory: Memory<S>) -> Self {
        let consumer = memory.consumer().load(Ordering::Relaxed);
        let producer = memory.producer().load(Ordering::Acquire);
        let cursor = Cursor::consumer(memory.size, consumer, producer);
        Self { memory, cursor }
    }

    /// Takes the next entry out; its slot is the kernel's again after [`release`](Self::release).
    pub(super) fn pop(&mut self) -> Option<S::Value> {
        if self.cursor.ready() == 0 {
            // Acquire: the slots' contents were visible before the index that covers them.
            self.cursor.see_producer(self.memory.producer().load(Ordering::Acquire));
            if self.cursor.ready() == 0 {
                return None;
            }
        }
        let value = self.memory.slots()[self.cursor.slot()].load();
        self.cursor.advance();
        Some(value)
    }

    /// Gives the slots of all popped entries back to the kernel.
    pub(super) fn release(&mut self) {
        // Release: we have read the slots before the kernel may write them again.
        self.memory.consumer().store(self.cursor.position(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFSETS: XdpRingOffset = XdpRingOffset { producer: 0, consumer: 64, flags: Some(128), desc: 192 };

    /// A ring over plain memory, with both indices at `start`.
    fn plain<S: Slot>(size: u32, start: u32) -> Memory<S> {
        let length = Memory::<S>::bytes(&OFFSETS, size).unwrap();
        // SAFETY: a new anonymous mapping touches no existing memory; there is no safe mmap.
        let memory = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        };
        let memory = Memory::over(memory.unwrap(), length, &OFFSETS, size).unwrap();
        memory.producer().store(start, Ordering::Relaxed);
        memory.consumer().store(start, Ordering::Relaxed);
        memory
    }

    proptest! {
        /// We fill, a "kernel" empties through the raw words; and the other way round. From any index.
        #[test]
        fn entries_cross_in_order(
            start in prop_oneof![any::<u32>(), (u32::MAX - 20)..=u32::MAX],
            size_log in 0_u32..5,
            bursts in proptest::collection::vec(0_u32..40, 1..60),
        ) {
            let size = 1_u32 << size_log;
            let mut ours = Producer::new(plain::<AtomicU64>(size, start));
            let mut theirs = Consumer::new(plain::<DescriptorSlot>(size, start));
            let (mut sent, mut back) = (0_u64, 0_u64);
            let (mut seen, mut given) = (start, start);
            for burst in bursts {
                for _ in 0..burst {
                    if ours.push(sent) { sent += 1; } else { prop_assert_eq!(ours.room(1), 0); }
                }
                prop_assert_eq!(ours.memory.producer().load(Ordering::Relaxed), seen, "nothing shows early");
                ours.submit();
                let submitted = ours.memory.producer().load(Ordering::Relaxed);
                prop_assert_eq!(ours.untaken(), submitted.wrapping_sub(seen));
                while seen != submitted {
                    let address = Slot::load(&ours.memory.slots()[(seen % size) as usize]);
                    let descriptor = Descriptor { address, length: address as u32 ^ 5, options: 0 };
                    theirs.memory.slots()[(given % size) as usize].store(descriptor);
                    seen = seen.wrapping_add(1);
                    given = given.wrapping_add(1);
                }
                ours.memory.consumer().store(seen, Ordering::Relaxed);
                theirs.memory.producer().store(given, Ordering::Relaxed);
                while let Some(descriptor) = theirs.pop() {
                    prop_assert_eq!(descriptor, Descriptor { address: back, length: back as u32 ^ 5, options: 0 });
                    back += 1;
                }
                theirs.release();
                prop_assert_eq!(theirs.memory.consumer().load(Ordering::Relaxed), given);
                prop_assert_eq!(back, sent);
            }
        }
    }

    #[test]
    fn impossible_indices_stop_the_ring_and_nothing_else() {
        let mut theirs = Consumer::new(plain::<AtomicU64>(8, 0));
        theirs.memory.producer().store(9, Ordering::Relaxed);
        assert_eq!(theirs.pop(), None);
        let mut ours = Producer::new(plain::<AtomicU64>(8, 0));
        ours.memory.consumer().store(1, Ordering::Relaxed);
        assert_eq!(ours.room(9), 0);
        assert!(!ours.push(1));
    }

    #[test]
    fn the_wakeup_flag_is_read_each_time() {
        let ours = Producer::new(plain::<AtomicU64>(8, 0));
        assert!(!ours.needs_wakeup());
        // SAFETY: the flags word of the ring's own memory, alive as long as `ours`.
        unsafe { ours.memory.flags.unwrap().as_ref() }.store(1, Ordering::Relaxed);
        assert!(ours.needs_wakeup());
    }

    #[test]
    fn offsets_outside_the_mapping_are_refused() {
        for offsets in [
            XdpRingOffset { producer: 1 << 20, ..OFFSETS },
            XdpRingOffset { consumer: 2, ..OFFSETS },
            XdpRingOffset { desc: 196, ..OFFSETS },
        ] {
            // SAFETY: as in `plain`.
            let memory = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    4096,
                    rustix::mm::ProtFlags::READ,
                    rustix::mm::MapFlags::PRIVATE,
                )
            };
            assert!(Memory::<AtomicU64>::over(memory.unwrap(), 4096, &offsets, 8).is_err());
        }
    }
}
