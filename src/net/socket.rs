//! Netlink sockets of the family ROUTE: requests with their answers, and notifications.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::constants as k;
use super::message::{Attributes, HEADER, Message, Messages, Request, read_u32};
use crate::sys::netlink::{NetlinkOption, enable};

/// Room for one datagram. The kernel fills at most 32 KiB when it dumps.
const DATAGRAM: usize = 64 << 10;
/// How long an answer may take. The kernel answers before the request's system call returns.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a dump that changed under the kernel's hands is repeated.
const DUMP_ATTEMPTS: u32 = 8;
/// Datagrams of one answer: a bound on a loop over input, far above any table this reads.
const MAX_ANSWER_DATAGRAMS: u32 = 1 << 20;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("the kernel refused to {what}: {cause}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
    Refused {
        /// What it was asked for, as in "add the address".
        what: &'static str,
        /// Its error.
        cause: io::Error,
        /// Its own words, where it gave any.
        detail: String,
    },
    /// The socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The answer made no sense.
    #[error("netlink: the answer to '{0}' was cut off, came too late or never ended")]
    Garbled(&'static str),
}

impl NetlinkError {
    /// The error number, where it is the kernel's refusal.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno.into())
    }
}

fn open(flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    Ok(fd)
}

/// True for the kernel itself: any process may send to a netlink socket, only the kernel has port 0.
fn is_kernel(sender: Option<rustix::net::SocketAddrAny>) -> bool {
    sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok()).is_some_and(|sender| sender.pid() == 0)
}

/// A socket that asks the kernel and waits for its answer. It belongs to the network namespace of the thread
/// that opened it, whichever thread uses it.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one pass over an answer's messages came to.
enum Progress {
    More,
    Done { interrupted: bool },
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn open() -> io::Result<Self> {
        let fd = open(SocketFlags::empty(), 0)?;
        for option in [NetlinkOption::ExtendedErrors, NetlinkOption::ShortErrors, NetlinkOption::StrictChecks]
        {
            enable(&fd, option)?;
        }
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM] })
    }

    /// How many requests were sent.
    #[cfg(test)]
    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Asks for a change, and waits until it is made. `what` completes "the kernel refused to ...".
    ///
    /// # Errors
    /// The kernel's refusal, or the socket's failure.
    pub fn change(&mut self, what: &'static str, request: Request) -> Result<(), NetlinkError> {
        self.exchange(what, request, k::NLM_F_REQUEST | k::NLM_F_ACK, &mut |_| {}).map(|_| ())
    }

    /// Asks for one thing, and hands the answer's message to `each`.
    ///
    /// # Errors
    /// The kernel's refusal, or the socket's failure.
    pub fn get(
        &mut self,
        what: &'static str,
        request: Request,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        // The acknowledgement marks the end: an answer without one would be waited for in vain.
        self.exchange(what, request, k::NLM_F_REQUEST | k::NLM_F_ACK, &mut each).map(|_| ())
    }

    /// Asks for a whole table, and gives what `decode` makes of its messages. A table that changed meanwhile is
    /// asked for again, a bounded number of times.
    ///
    /// # Errors
    /// The kernel's refusal, or the socket's failure.
    pub fn dump<T>(
        &mut self,
        what: &'static str,
        request: &Request,
        mut decode: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut rows = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            rows.clear();
            let interrupted =
                self.exchange(what, request.clone(), k::NLM_F_REQUEST | k::NLM_F_DUMP, &mut |message| {
                    rows.extend(decode(message));
                })?;
            if !interrupted {
                break;
            }
        }
        // A table that never holds still is used as it was seen last: the change that interrupted it is also
        // notified, and asked for again then.
        Ok(rows)
    }

    /// Sends, then reads until the answer's end. Says whether a dump was interrupted.
    fn exchange(
        &mut self,
        what: &'static str,
        request: Request,
        flags: u16,
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let bytes = request.finish(self.sequence, flags);
        let kernel = SocketAddrNetlink::new(0, 0);
        retry(|| rustix::net::sendto(&self.fd, &bytes, SendFlags::empty(), &kernel))?;
        let mut interrupted = false;
        for _ in 0..MAX_ANSWER_DATAGRAMS {
            let (_, length, sender) =
                retry(|| rustix::net::recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)).map_err(
                    |errno| match errno {
                        Errno::AGAIN => NetlinkError::Garbled(what),
                        other => other.into(),
                    },
                )?;
            if !is_kernel(sender) {
                continue;
            }
            let datagram = self.buffer.get(..length).ok_or(NetlinkError::Garbled(what))?;
            match read_answer(what, datagram, self.sequence, each)? {
                Progress::More => interrupted |= was_interrupted(datagram),
                Progress::Done { interrupted: last } => return Ok(interrupted | last),
            }
        }
        Err(NetlinkError::Garbled(what))
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn was_interrupted(datagram: &[u8]) -> bool {
    Messages::new(datagram).any(|message| message.flags & k::NLM_F_DUMP_INTR != 0)
}

/// Hands the messages of one datagram that answer request `sequence` to `each`.
fn read_answer(
    what: &'static str,
    datagram: &[u8],
    sequence: u32,
    each: &mut dyn FnMut(Message<'_>),
) -> Result<Progress, NetlinkError> {
    for message in Messages::new(datagram).filter(|message| message.sequence == sequence) {
        match message.kind {
            k::NLMSG_ERROR | k::NLMSG_DONE => {
                // Both start with the (negative) error number; zero is success.
                let code = read_u32(message.payload, 0).map_or(0, |code| (code as i32).wrapping_neg());
                if code > 0 {
                    let cause = io::Error::from_raw_os_error(code);
                    return Err(NetlinkError::Refused { what, cause, detail: explanation(&message) });
                }
                return Ok(Progress::Done { interrupted: was_interrupted(datagram) });
            }
            k::NLMSG_OVERRUN => return Err(NetlinkError::Garbled(what)),
            _ => each(message),
        }
    }
    Ok(Progress::More)
}

/// The kernel's own words on an error.
fn explanation(message: &Message<'_>) -> String {
    if message.kind != k::NLMSG_ERROR || message.flags & k::NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    let request = match read_u32(message.payload, 4) {
        Some(length) if message.flags & k::NLM_F_CAPPED == 0 => length as usize,
        _ => HEADER,
    };
    let Some(fixed) = request.checked_add(4).filter(|&fixed| fixed <= message.payload.len()) else {
        return String::new();
    };
    Attributes::after(message.payload, fixed)
        .find(|(kind, _)| *kind == k::NLMSGERR_ATTR_MSG)
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

/// A socket on which the kernel tells of changes. It never blocks.
#[derive(Debug)]
pub struct Notifications {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// What [`Notifications::receive`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A datagram, whose messages were handed on.
    Some,
    /// Nothing for now.
    Nothing,
    /// Notifications were lost: everything must be asked for anew.
    Overrun,
}

impl Notifications {
    /// Subscribes to links, addresses, routes, rules, next hops and neighbours, with a receive buffer of
    /// `buffer_bytes` (the kernel may allow less).
    ///
    /// # Errors
    /// The kernel's own.
    pub fn open(buffer_bytes: usize) -> io::Result<Self> {
        let groups = k::RTNLGRP.iter().fold(0, |mask, group| mask | 1_u32 << (group - 1));
        let fd = open(SocketFlags::NONBLOCK, groups)?;
        if sockopt::set_socket_recv_buffer_size_force(&fd, buffer_bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, buffer_bytes)?;
        }
        Ok(Self { fd, buffer: vec![0; DATAGRAM] })
    }

    /// Takes one datagram, and hands its messages to `each`.
    ///
    /// # Errors
    /// The socket's failure.
    pub fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<Received> {
        match retry(|| rustix::net::recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)) {
            Ok((_, length, sender)) => {
                let Some(datagram) = self.buffer.get(..length) else { return Ok(Received::Overrun) };
                if is_kernel(sender) {
                    Messages::new(datagram).for_each(&mut each);
                }
                Ok(Received::Some)
            }
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            Err(Errno::NOBUFS) => Ok(Received::Overrun),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn answers_of_any_bytes_are_read_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..256),
            kind in prop::sample::select(vec![k::NLMSG_ERROR, k::NLMSG_DONE, 16]),
            flags in any::<u16>(),
        ) {
            let message = Request::new(kind, flags, &bytes).finish(1, 0);
            let _ = read_answer("test", &message, 1, &mut |_| {});
            let _ = read_answer("test", &bytes, 0, &mut |_| {});
        }
    }

    #[test]
    fn errors_carry_the_kernels_words() {
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        let bytes = Request::new(k::NLMSG_ERROR, k::NLM_F_CAPPED | k::NLM_F_ACK_TLVS, &payload)
            .text(k::NLMSGERR_ATTR_MSG, "Invalid prefix")
            .finish(5, 0);
        let error = match read_answer("add the route", &bytes, 5, &mut |_| {}) {
            Err(error) => error,
            Ok(_) => panic!("an error was taken for an answer"),
        };
        assert_eq!(error.refusal(), Some(22));
        assert!(error.to_string().starts_with("the kernel refused to add the route: "), "{error}");
        assert!(error.to_string().ends_with(": Invalid prefix"), "{error}");
    }

    #[test]
    fn the_kernel_answers_a_dump_and_refuses_nonsense() {
        let mut netlink = Netlink::open().unwrap();
        let request = Request::new(k::RTM_GETLINK, 0, &[0; k::LINK_FIXED]);
        let kinds = netlink.dump("list the links", &request, |message| Some(message.kind)).unwrap();
        assert!(!kinds.is_empty());
        assert!(kinds.iter().all(|&kind| kind == k::RTM_NEWLINK));
        let nobody = Request::new(k::RTM_GETLINK, 0, &[0; k::LINK_FIXED]).text(k::IFLA_IFNAME, "uvs-no-such");
        let error = netlink.get("look at the link", nobody, |_| {}).unwrap_err();
        assert_eq!(error.refusal(), Some(libc::ENODEV), "{error}");
    }
}
