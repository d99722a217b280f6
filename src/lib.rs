//! uvs, the Userspace Virtual Server: an LVS director without the kernel's IPVS.
//!
//! The folders are the layers, lowest first; a layer uses only those before it.
//!
//! # [`sys`] - the system
//! System calls, mappings, rings, frames. The only `unsafe`.
//!
//! # [`types`] - values
//! Addresses, keys, time (never a clock).
//!
//! # [`forward`], [`director`] - the parts of the director, and the director
//! Frames in, verdicts out. No I/O, no clock, no threads.
//!
//! # [`control`] - commands
//! What operators say, and what they read: ipvsadm's grammar and listings, and the socket between.
//!
//! # [`io`] - the machine
//! Ports: where frames come from and go to.

pub mod sys;
pub mod types;

pub mod forward;

pub mod director;

pub mod control;

pub mod io;
