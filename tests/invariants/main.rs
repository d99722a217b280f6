//! The invariants that the crate's documentation promises, held by reading its source and by watching it work.

mod allocation;
mod conservation;
mod director;
mod source;

/// Counts the allocations of the packet path.
#[global_allocator]
static ALLOCATOR: uvs::sys::allocations::CountingAllocator = uvs::sys::allocations::CountingAllocator;
