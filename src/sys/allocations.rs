//! Allocations counted, so that a test can hold the packet path to making none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Without a destructor and initialised at compile time, so that reaching it allocates nothing.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread how often memory is asked for: allocations and
/// reallocations, not releases. For tests and benchmarks, as their `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Allocations of the calling thread while it did `work`, and what came of the work.
    ///
    /// Always 0 where the allocator is not the program's global one.
    pub fn count<T>(work: impl FnOnce() -> T) -> (u64, T) {
        let before = ALLOCATIONS.get();
        let result = work();
        (ALLOCATIONS.get().wrapping_sub(before), result)
    }
}

/// Counts one allocation. A thread that is being torn down goes uncounted.
fn note() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get().wrapping_add(1)));
}

// SAFETY: every call is passed on unchanged to `System`, which keeps the trait's contract; counting neither
// allocates nor panics. The trait itself is unsafe: there is no safe way to be an allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the trait's contract, which is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`; the pointer came from `System`, like all of ours.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
