//! The director: turns batches of frames into verdicts.

mod batch;
mod verdict;

pub use batch::{BATCH_SIZE, Batch, Entry, Offload};
pub use verdict::{DropReason, Verdict};
