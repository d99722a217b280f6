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
//! # [`wire`] - bytes
//! Packets read and rewritten in place. Any bytes, no panic.
//!
//! # [`service`], [`scheduler`], [`conn`], [`persistence`], [`forward`], [`fragment`], [`director`] - the director and its parts
//! Frames in, verdicts out. No I/O, no clock, no threads.
//!
//! # [`control`] - commands
//! What operators say, and what they read: ipvsadm's grammar and listings, the state that commands change, and the
//! socket between.
//!
//! # [`io`], [`net`] - the machine
//! Ports: where frames come from and go to. Next hops: the kernel's routes and neighbours, mirrored.
//!
//! # [`replay`], [`lab`] - the program
//! The director over a capture, offline; a whole cluster in network namespaces, to try the director on.

pub mod sys;
pub mod types;
pub mod wire;

pub mod conn;
pub mod forward;
pub mod fragment;
pub mod persistence;
pub mod scheduler;
pub mod service;

pub mod director;

pub mod control;

pub mod io;
pub mod net;

pub mod daemon;
pub mod lab;
pub mod replay;
pub mod worker;
