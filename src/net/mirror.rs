//! The thread that keeps a [`NetworkState`] true, and the handle on it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::session::Session;
use super::socket::NetlinkError;
use super::state::NetworkState;
use crate::types::PortId;

/// Most destinations that are mirrored; above any sensible number of real servers.
pub const MAX_DESTINATIONS: usize = 1 << 14;
/// Most receivers of [`Mirror::changed`].
const MAX_SUBSCRIBERS: usize = 16;
/// Room for notifications from the kernel, in bytes.
const NOTIFICATION_BUFFER: usize = 1 << 20;
/// How long to wait before a failed socket is opened again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Why a mirror could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no interface of this name.
    #[error("there is no interface '{name}'; there are: {}", existing.join(", "))]
    NoInterface {
        /// The name.
        name: String,
        /// The interfaces that there are.
        existing: Vec<String>,
    },
    /// The interface has no Ethernet address.
    #[error("interface '{0}' is not an Ethernet interface: the director needs Ethernet addresses")]
    NotEthernet(String),
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread, or no descriptor to wake it with.
    #[error("the thread that mirrors the kernel's tables could not be started: {0}")]
    Thread(#[from] io::Error),
}

/// What the handle and the thread share.
#[derive(Debug)]
struct Shared {
    state: ArcSwap<NetworkState>,
    control: Mutex<Control>,
    /// Told when `Control::asked` moves.
    asked: Condvar,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Control {
    wanted: Arc<BTreeSet<IpAddr>>,
    wants_networks: bool,
    /// Counts the calls of `want` and `want_networks`.
    generation: u64,
    /// The call whose destinations were all asked for.
    asked: u64,
    stop: bool,
    subscribers: Vec<Sender<()>>,
}

/// A mirror of the kernel's links, addresses, routes and neighbours, as far as the director needs them.
/// Dropping it ends its thread.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Reads the kernel's tables once, and starts a thread that keeps them up to date. It sees the network
    /// namespace that the calling thread is in.
    ///
    /// # Errors
    /// An interface that does not exist or has no Ethernet address; the kernel's refusal to be asked.
    pub fn start(interfaces: Vec<(PortId, String)>) -> Result<Self, StartError> {
        Self::start_with_buffer(interfaces, NOTIFICATION_BUFFER)
    }

    fn start_with_buffer(interfaces: Vec<(PortId, String)>, buffer: usize) -> Result<Self, StartError> {
        let session = Session::open(&interfaces, buffer)?;
        for (name, link) in session.view().port_links() {
            let link = link.ok_or_else(|| StartError::NoInterface {
                name: name.to_owned(),
                existing: session.view().link_names(),
            })?;
            link.mac.ok_or_else(|| StartError::NotEthernet(name.to_owned()))?;
        }
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(session.view().state()),
            control: Mutex::default(),
            asked: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?,
        });
        let thread = std::thread::Builder::new().name("uvs-net".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run(&shared, session, &|| Session::open(&interfaces, buffer))
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the destinations to know the way to, in place of those before: real servers, tunnels' far ends.
    /// Over [`MAX_DESTINATIONS`], the rest is left out, with a line in the log. Does not wait: see
    /// [`settle`](Self::settle).
    pub fn want(&self, mut destinations: BTreeSet<IpAddr>) {
        if let Some(&first_over) = destinations.iter().nth(MAX_DESTINATIONS) {
            let left_out = destinations.split_off(&first_over).len();
            tracing::error!(left_out, limit = MAX_DESTINATIONS, "too many destinations to mirror");
        }
        {
            let mut control = self.shared.control.lock();
            control.wanted = Arc::new(destinations);
            control.generation += 1;
        }
        self.shared.wake();
    }

    /// From now on, follow the routes to all networks as well: the table "main", and the gateways in it. Does not wait,
    /// as [`want`](Self::want).
    pub fn want_networks(&self) {
        {
            let mut control = self.shared.control.lock();
            control.wants_networks = true;
            control.generation += 1;
        }
        self.shared.wake();
    }

    /// What is known now.
    pub fn snapshot(&self) -> Arc<NetworkState> {
        self.shared.state.load_full()
    }

    /// A channel that holds a message whenever the snapshot has changed since the last one was taken out. Each
    /// call makes a channel of its own, up to a handful; past that, and after the mirror is dropped, it is
    /// disconnected.
    pub fn changed(&self) -> Receiver<()> {
        let (sender, receiver) = bounded(1);
        let mut control = self.shared.control.lock();
        if control.subscribers.len() < MAX_SUBSCRIBERS {
            control.subscribers.push(sender);
        }
        receiver
    }

    /// Waits until the kernel was asked once for every destination of the last [`want`](Self::want), and the
    /// snapshot says what it answered; neighbours may still be resolving. False where that took longer than
    /// `timeout`.
    pub fn settle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut control = self.shared.control.lock();
        let generation = control.generation;
        while control.asked < generation {
            if self.shared.asked.wait_until(&mut control, deadline).timed_out() {
                return control.asked >= generation;
            }
        }
        true
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.control.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Wakes the thread.
    fn wake(&self) {
        // The one way this fails is a counter at its maximum, which wakes just as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Puts `state` in place of the last one where they differ, and says so to whoever wants to know.
    fn publish(&self, state: NetworkState) {
        if **self.state.load() == state {
            return;
        }
        self.state.store(Arc::new(state));
        self.control.lock().subscribers.retain(|subscriber| {
            // A full channel already says what there is to say.
            !matches!(subscriber.try_send(()), Err(TrySendError::Disconnected(())))
        });
    }

    /// Waits until somebody wakes the thread, `more` is readable, or the deadline.
    fn wait(&self, more: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let Some(more) = more {
            fds.push(PollFd::from_borrowed_fd(more, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Takes the wake-up off; there may be none.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        Ok(())
    }
}

/// The thread: turns until it is told to stop, and opens the sockets anew when they fail.
fn run(shared: &Shared, session: Session, reopen: &dyn Fn() -> Result<Session, NetlinkError>) {
    let mut session = Some(session);
    let mut asked = 0;
    loop {
        let (wanted, generation, stop) = {
            let control = shared.control.lock();
            let wanted = (Arc::clone(&control.wanted), control.wants_networks);
            (wanted, control.generation, control.stop)
        };
        if stop {
            return;
        }
        match session.as_mut().map(|session| step(shared, session, (asked != generation).then_some(wanted))) {
            Some(Ok(())) => {
                if asked != generation {
                    asked = generation;
                    shared.control.lock().asked = generation;
                    shared.asked.notify_all();
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the kernel's tables cannot be followed; trying again");
                session = None;
            }
            None => match reopen() {
                Ok(new) => {
                    session = Some(new);
                    asked = 0; // nothing was asked in the new session
                    continue;
                }
                Err(error) => tracing::debug!(%error, "still no way to follow the kernel's tables"),
            },
        }
        let waited = match &session {
            Some(session) => shared.wait(Some(session.notifications().as_fd()), session.deadline()),
            None => shared.wait(None, Instant::now() + REOPEN_INTERVAL),
        };
        if let Err(error) = waited {
            tracing::error!(%error, "waiting for the kernel's notifications failed");
            std::thread::sleep(REOPEN_INTERVAL);
        }
    }
}

/// One turn of the session, and its outcome published.
fn step(
    shared: &Shared,
    session: &mut Session,
    wanted: Option<(Arc<BTreeSet<IpAddr>>, bool)>,
) -> Result<(), NetlinkError> {
    if let Some((wanted, wants_networks)) = wanted {
        session.want(wanted, wants_networks)?;
    }
    session.turn(Instant::now())?;
    if session.take_changed() {
        shared.publish(session.view().state());
    }
    Ok(())
}
