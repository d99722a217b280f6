//! Memory from the kernel: zeroed mappings, and arrays of atomic words over them.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

/// The one place where atomics and the tables' locks come from, so that a model checker can put its own in: with
/// `--cfg uvs_shuttle`, tests run on those of the crate `shuttle`, which try many interleavings of threads.
pub mod atomic {
    #[cfg(not(all(test, uvs_shuttle)))]
    pub use parking_lot::{Mutex, MutexGuard};
    #[cfg(all(test, uvs_shuttle))]
    pub use shuttle::{
        hint::spin_loop,
        sync::MutexGuard,
        sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    };
    #[cfg(not(all(test, uvs_shuttle)))]
    pub use std::{
        hint::spin_loop,
        sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    };
    #[cfg(all(test, uvs_shuttle))]
    pub use with_shuttle::Mutex;

    #[cfg(all(test, uvs_shuttle))]
    mod with_shuttle {
        use std::sync::PoisonError;

        use super::MutexGuard;

        /// A model checker's mutex with the methods of parking_lot's.
        #[derive(Debug)]
        pub struct Mutex<T>(shuttle::sync::Mutex<T>);

        impl<T> Mutex<T> {
            /// Unlocked, around `value`.
            pub fn new(value: T) -> Self {
                Self(shuttle::sync::Mutex::new(value))
            }

            /// Waits until nobody has it.
            pub fn lock(&self) -> MutexGuard<'_, T> {
                self.0.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

/// The mutex to go with these atomics: a lock that several workers may wait for.
pub mod mutex {
    #[cfg(not(all(test, uvs_shuttle)))]
    pub use parking_lot::{Mutex, MutexGuard};
    #[cfg(all(test, uvs_shuttle))]
    pub use shuttle::sync::MutexGuard;

    /// The model checker's, with the other's interface.
    #[cfg(all(test, uvs_shuttle))]
    #[derive(Debug)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    #[cfg(all(test, uvs_shuttle))]
    impl<T> Mutex<T> {
        /// An open one around `value`.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits until nobody holds it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no test panics while it holds a lock")
        }
    }
}

use atomic::AtomicU64;

/// An anonymous, zeroed, page-aligned mapping. Pages become resident when first touched.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is plain memory without thread affinity; access goes through `Mapping`'s borrow rules.
// The raw pointer in it is what keeps the compiler from seeing that by itself.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` hands out nothing but its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `length` bytes (rounded up to whole pages, never none), asking for huge pages.
    ///
    /// # Errors
    /// The kernel's own, typically out of memory.
    pub fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1).next_multiple_of(4096);
        // SAFETY: an anonymous private mapping at an address of the kernel's choosing touches no existing
        // memory. There is no safe mmap.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE,
            )?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        if length >= 2 << 20 {
            // Huge pages are a wish: where there are none, ordinary pages serve.
            // SAFETY: the range is the mapping just made; the advice does not change its contents.
            let _ = unsafe {
                rustix::mm::madvise(start.as_ptr().cast(), length, rustix::mm::Advice::LinuxHugepage)
            };
        }
        Ok(Self { start, length })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never true: a mapping has at least a page.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first byte, valid for [`len`](Self::len) bytes as long as the mapping lives.
    pub(in crate::sys) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing borrowed from it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A fixed array of zeroed atomic words, page-aligned, resident only where touched.
///
/// Tables are made of these, and of indices into them instead of pointers, so that a table's bytes mean
/// the same wherever they are mapped.
#[cfg(not(all(test, uvs_shuttle)))]
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    count: usize,
}

#[cfg(not(all(test, uvs_shuttle)))]
impl Words {
    /// An array of `count` words, all zero.
    ///
    /// # Errors
    /// The kernel's own, typically out of memory.
    pub fn new(count: usize) -> io::Result<Self> {
        let bytes = count.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping: Mapping::new(bytes)?, count })
    }
}

#[cfg(not(all(test, uvs_shuttle)))]
impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, at least `count` words long, zeroed (a valid AtomicU64), lives
        // as long as the borrow, and is only ever accessed through this slice of atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().cast::<AtomicU64>(), self.count) }
    }
}

/// As above, of a model checker's atomics, which are more than words.
#[cfg(all(test, uvs_shuttle))]
#[derive(Debug)]
pub struct Words(Box<[AtomicU64]>);

#[cfg(all(test, uvs_shuttle))]
impl Words {
    /// An array of `count` words, all zero.
    ///
    /// # Errors
    /// None.
    pub fn new(count: usize) -> io::Result<Self> {
        Ok(Self((0..count).map(|_| AtomicU64::new(0)).collect()))
    }
}

#[cfg(all(test, uvs_shuttle))]
impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// Asks the processor to bring the cache line of `target` closer. Has no other effect.
#[inline(always)]
pub fn prefetch<T>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching a valid reference's address reads nothing architecturally and cannot fault.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = target;
}

/// Random words from the kernel, for the keys of tables.
///
/// # Errors
/// The kernel's own; does not happen on a booted Linux.
pub fn random_words<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0_u64; N];
    for word in &mut words {
        let mut bytes = [0_u8; 8];
        // SAFETY: the buffer is valid for its length. The standard library offers no source of raw bytes.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != 8 {
            return Err(io::Error::last_os_error());
        }
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::atomic::Ordering;
    use super::*;

    #[test]
    fn words_start_as_zero_and_keep_what_is_stored() {
        let words = Words::new(1000).unwrap();
        assert_eq!(words.len(), 1000);
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        words[999].store(7, Ordering::Relaxed);
        assert_eq!(words[999].load(Ordering::Relaxed), 7);
        assert_eq!(words.as_ptr() as usize % 4096, 0);
    }

    #[test]
    fn random_words_differ() {
        assert_ne!(random_words::<2>().unwrap(), random_words::<2>().unwrap());
    }
}
