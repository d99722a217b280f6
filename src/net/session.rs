//! Keeping a [`View`] true: what is asked of the kernel, when, and how often at most.
//!
//! Notifications of links, addresses, routes and rules are signals only: what they concern is asked for anew,
//! once per [`REFRESH_INTERVAL`] at most. So a burst of them costs one look at each table, none of the kernel's
//! changes that go without a notification (routes that vanish with their link) is missed, and there is one way
//! of reading, not two. Notifications of neighbours are taken in as they come, but only of those that routes
//! lead through; other neighbours are never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::constants as k;
use super::decode::{InterfaceAddress, Link, NeighbourEntry};
use super::message::{Message, Request, family, octets, read_u8};
use super::route::{NetworkRoute, Route, local_route};
use super::socket::{Netlink, NetlinkError, Notifications, Received};
use super::view::{NeighbourKey, View};
use crate::types::{Family, PortId};

/// How long a table is left alone after it was read.
const REFRESH_INTERVAL: Duration = Duration::from_millis(50);
/// How often everything is read without a cause: a notification that never came must not matter for ever.
const FULL_REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// Neighbours that the kernel is asked to resolve at a time, and the time between.
const PROBES_PER_ROUND: usize = 32;
const PROBE_ROUND_INTERVAL: Duration = Duration::from_millis(100);
/// Most routes of the table "main" that are mirrored.
const MAX_ROUTES: usize = 1 << 17;
/// Datagrams of notifications taken in before doing anything else.
const NOTIFICATIONS_PER_ROUND: usize = 256;

/// What has to be read again.
#[derive(Clone, Copy, Default, Debug)]
struct Stale {
    /// Links, addresses and the local table.
    tables: bool,
    routes: bool,
    neighbours: bool,
}

/// The sockets, and what was learnt through them.
#[derive(Debug)]
pub(super) struct Session {
    netlink: Netlink,
    notifications: Notifications,
    view: View,
    wanted: Arc<BTreeSet<IpAddr>>,
    /// Whether the table "main" is to be known.
    wants_networks: bool,
    stale: Stale,
    refreshed: Instant,
    fully_refreshed: Instant,
    probed: Option<Instant>,
    probes_left: bool,
    changed: bool,
}

impl Session {
    /// Opens the sockets in the calling thread's network namespace, and reads everything once. Notifications
    /// wait in a buffer of `buffer_bytes`.
    pub(super) fn open(interfaces: &[(PortId, String)], buffer_bytes: usize) -> Result<Self, NetlinkError> {
        let now = Instant::now();
        let mut session = Self {
            // Subscribed before anything is read: nothing can change unnoticed in between.
            notifications: Notifications::open(buffer_bytes)?,
            netlink: Netlink::open()?,
            view: View::new(interfaces),
            wanted: Arc::default(),
            wants_networks: false,
            stale: Stale::default(),
            refreshed: now,
            fully_refreshed: now,
            probed: None,
            probes_left: false,
            changed: false,
        };
        session.read_tables()?;
        Ok(session)
    }

    /// What is known.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Whether anything was read since this was last asked that the view did not know.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Becomes readable with a notification.
    pub(super) fn notifications(&self) -> &Notifications {
        &self.notifications
    }

    /// Sets the destinations to know the way to, and asks at once for the routes of those that are new; and whether the
    /// table "main" is to be known.
    pub(super) fn want(
        &mut self,
        wanted: Arc<BTreeSet<IpAddr>>,
        wants_networks: bool,
    ) -> Result<(), NetlinkError> {
        self.wanted = wanted;
        if wants_networks && !self.wants_networks {
            self.wants_networks = true;
            self.read_networks()?;
        }
        self.read_routes_unless(|view, destination| view.route(destination))
    }

    /// Takes in notifications, reads again what they and time made stale, asks for neighbours that are due.
    pub(super) fn turn(&mut self, now: Instant) -> Result<(), NetlinkError> {
        self.take_notifications()?;
        if now >= self.fully_refreshed + FULL_REFRESH_INTERVAL {
            self.fully_refreshed = now;
            self.stale = Stale { tables: true, routes: true, neighbours: true };
        }
        if self.is_stale() && now >= self.refreshed + REFRESH_INTERVAL {
            let stale = std::mem::take(&mut self.stale);
            if stale.tables {
                self.read_tables()?;
            }
            if stale.tables || stale.routes {
                self.read_routes()?;
            }
            if stale.neighbours {
                for key in self.view.neighbours() {
                    self.read_neighbour(key)?;
                }
            }
            self.refreshed = Instant::now();
        }
        self.probe(now)
    }

    /// When the next [`turn`](Self::turn) has something to do that no notification announces.
    pub(super) fn deadline(&self) -> Instant {
        let refresh = self.is_stale().then(|| self.refreshed + REFRESH_INTERVAL);
        let round = self.probed.map(|then| then + PROBE_ROUND_INTERVAL);
        let due = self.view.next_due(Instant::now());
        let probe = if self.probes_left { round } else { due.and_then(|due| Some(due).max(round)) };
        [refresh, probe]
            .into_iter()
            .flatten()
            .fold(self.fully_refreshed + FULL_REFRESH_INTERVAL, Instant::min)
    }

    fn is_stale(&self) -> bool {
        self.stale.tables || self.stale.routes || self.stale.neighbours
    }

    fn take_notifications(&mut self) -> io::Result<()> {
        let (view, stale, changed) = (&mut self.view, &mut self.stale, &mut self.changed);
        for _ in 0..NOTIFICATIONS_PER_ROUND {
            match self.notifications.receive(|message| {
                *changed |= take_notification(view, stale, message);
            })? {
                Received::Some => {}
                Received::Nothing => break,
                Received::Overrun => {
                    tracing::debug!("notifications from the kernel were lost; reading everything again");
                    *stale = Stale { tables: true, routes: true, neighbours: true };
                }
            }
        }
        Ok(())
    }

    fn read_tables(&mut self) -> Result<(), NetlinkError> {
        let request = Request::new(k::RTM_GETLINK, 0, &[0; k::LINK_FIXED]);
        self.view.set_links(self.netlink.dump("list the interfaces", &request, Link::decode)?);
        let request = Request::new(k::RTM_GETADDR, 0, &[0; k::ADDRESS_FIXED]);
        self.view.set_addresses(self.netlink.dump(
            "list the addresses",
            &request,
            InterfaceAddress::decode,
        )?);
        let mut local = Vec::new();
        for family in [k::AF_INET, k::AF_INET6] {
            let fixed = [family, 0, 0, 0, k::RT_TABLE_LOCAL, 0, 0, k::RTN_LOCAL, 0, 0, 0, 0];
            let request =
                Request::new(k::RTM_GETROUTE, 0, &fixed).number(k::RTA_TABLE, u32::from(k::RT_TABLE_LOCAL));
            match self.netlink.dump("list the local table", &request, local_route) {
                Ok(rows) => local.extend(rows),
                // No such table, no such family: nothing is local in it.
                Err(error) if error.refusal().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        self.view.set_local(local);
        self.changed = true;
        Ok(())
    }

    fn read_routes(&mut self) -> Result<(), NetlinkError> {
        if self.wants_networks {
            self.read_networks()?;
        }
        self.read_routes_unless(|_, _| None)
    }

    /// Asks for the route of every wanted destination for which `known` has none.
    fn read_routes_unless(
        &mut self,
        known: impl Fn(&View, IpAddr) -> Option<Route>,
    ) -> Result<(), NetlinkError> {
        let mut routes = BTreeMap::new();
        let wanted = Arc::clone(&self.wanted);
        for &destination in wanted.iter() {
            let route = match known(&self.view, destination) {
                Some(route) => route,
                None => self.read_route(destination)?,
            };
            routes.insert(destination, route);
        }
        self.changed = true;
        for key in self.view.set_routes(routes) {
            self.read_neighbour(key)?;
        }
        Ok(())
    }

    /// Reads the table "main". Rules that lead to other tables are not considered.
    fn read_networks(&mut self) -> Result<(), NetlinkError> {
        let mut networks = Vec::new();
        for family in [k::AF_INET, k::AF_INET6] {
            let fixed = [family, 0, 0, 0, k::RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0];
            let request =
                Request::new(k::RTM_GETROUTE, 0, &fixed).number(k::RTA_TABLE, u32::from(k::RT_TABLE_MAIN));
            match self.netlink.dump("list the routes", &request, NetworkRoute::decode) {
                Ok(rows) => networks.extend(rows),
                // No such table, no such family: no route in it.
                Err(error) if error.refusal().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if networks.len() > MAX_ROUTES {
            let left_out = networks.len() - MAX_ROUTES;
            tracing::error!(left_out, limit = MAX_ROUTES, "too many routes to mirror");
            networks.truncate(MAX_ROUTES);
        }
        self.view.set_networks(networks);
        Ok(())
    }

    /// The kernel's own choice for `destination`, rules, metrics and multipath considered.
    fn read_route(&mut self, destination: IpAddr) -> Result<Route, NetlinkError> {
        let mut fixed = [0; k::ROUTE_FIXED];
        fixed[0] = family(destination);
        fixed[1] = Family::of(destination).bits();
        let request = Request::new(k::RTM_GETROUTE, 0, &fixed).attribute(k::RTA_DST, &octets(destination));
        let mut route = Route::None;
        match self.netlink.get("look up the route", request, |message| {
            if let Some(found) = Route::decode(message) {
                route = found;
            }
        }) {
            Ok(()) => Ok(route),
            // Unreachable, prohibited, blackholed: the kernel says it by an error, a different one for each.
            Err(error) if error.refusal().is_some() => {
                tracing::trace!(%destination, %error, "no route");
                Ok(Route::None)
            }
            Err(error) => Err(error),
        }
    }

    fn read_neighbour(&mut self, key: NeighbourKey) -> Result<(), NetlinkError> {
        let mut found = NeighbourEntry { link: key.0, address: key.1, mac: None, state: k::NUD_NONE };
        let request =
            Request::new(k::RTM_GETNEIGH, 0, &neighbour_fixed(key, 0)).attribute(k::NDA_DST, &octets(key.1));
        match self.netlink.get("look up the neighbour", request, |message| {
            if let Some(entry) = NeighbourEntry::decode(message) {
                found = entry;
            }
        }) {
            Ok(()) => {}
            // No such entry (or no such interface any more).
            Err(error) if error.refusal().is_some() => {}
            Err(error) => return Err(error),
        }
        self.changed |= self.view.set_neighbour(found);
        Ok(())
    }

    /// Asks the kernel to resolve what is due: as if a packet had been sent there (NTF_USE), which starts the
    /// resolution of what is unknown or failed, and the confirmation of what is stale.
    fn probe(&mut self, now: Instant) -> Result<(), NetlinkError> {
        if self.probed.is_some_and(|then| now < then + PROBE_ROUND_INTERVAL) {
            return Ok(());
        }
        let mut due = self.view.due(now, PROBES_PER_ROUND + 1);
        self.probes_left = due.len() > PROBES_PER_ROUND;
        due.truncate(PROBES_PER_ROUND);
        for &key in &due {
            self.view.probed(key, now);
            let request = Request::new(k::RTM_NEWNEIGH, k::NLM_F_CREATE, &neighbour_fixed(key, k::NTF_USE))
                .attribute(k::NDA_DST, &octets(key.1));
            match self.netlink.change("resolve the neighbour", request) {
                Ok(()) => self.read_neighbour(key)?,
                Err(error) if error.refusal().is_some() => {
                    tracing::debug!(neighbour = %key.1, link = key.0, %error, "not resolved");
                }
                Err(error) => return Err(error),
            }
        }
        if !due.is_empty() {
            self.probed = Some(now);
        }
        Ok(())
    }
}

fn neighbour_fixed(key: NeighbourKey, flags: u8) -> [u8; k::NEIGHBOUR_FIXED] {
    let mut fixed = [0; k::NEIGHBOUR_FIXED];
    fixed[0] = family(key.1);
    fixed[4..8].copy_from_slice(&key.0.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

/// Takes in one notification, and says whether the view changed by it.
fn take_notification(view: &mut View, stale: &mut Stale, message: Message<'_>) -> bool {
    match message.kind {
        k::RTM_NEWLINK | k::RTM_DELLINK | k::RTM_NEWADDR | k::RTM_DELADDR => stale.tables = true,
        k::RTM_NEWROUTE | k::RTM_DELROUTE => {
            stale.routes = true;
            stale.tables |= read_u8(message.payload, 4) == Some(k::RT_TABLE_LOCAL);
        }
        k::RTM_NEWRULE | k::RTM_DELRULE | k::RTM_NEWNEXTHOP | k::RTM_DELNEXTHOP => stale.routes = true,
        k::RTM_NEWNEIGH | k::RTM_DELNEIGH => {
            return NeighbourEntry::decode(message).is_some_and(|entry| view.set_neighbour(entry));
        }
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Room for a few notifications: the least that the kernel gives.
    const TINY_BUFFER: usize = 1;

    #[test]
    fn lost_notifications_lead_to_the_truth_all_the_same() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
            eprintln!("SKIPPED: needs root, to make a network namespace");
            return;
        }
        std::thread::spawn(|| {
            crate::sys::namespace::unshare_network().unwrap();
            let mut netlink = Netlink::open().unwrap();
            let mut up = [0; k::LINK_FIXED];
            up[4..8].copy_from_slice(&1_u32.to_ne_bytes());
            up[8..16].copy_from_slice(&[k::IFF_UP.to_ne_bytes(), k::IFF_UP.to_ne_bytes()].concat());
            netlink.change("switch lo on", Request::new(k::RTM_NEWLINK, 0, &up)).unwrap();
            let mut session = Session::open(&[(PortId(0), "lo".to_owned())], TINY_BUFFER).unwrap();
            let address = |last: u8| IpAddr::from([192, 0, 2, last]);
            let add = |netlink: &mut Netlink, last| {
                let mut fixed = [k::AF_INET, 32, 0, 0, 0, 0, 0, 0];
                fixed[4..8].copy_from_slice(&1_u32.to_ne_bytes());
                let request = Request::new(k::RTM_NEWADDR, k::NLM_F_CREATE, &fixed)
                    .attribute(k::IFA_LOCAL, &octets(address(last)));
                netlink.change("add the address", request).unwrap();
            };
            for last in 1..=200 {
                add(&mut netlink, last);
            }
            assert!(!session.view().state().is_local(address(1)));
            let mut received = vec![];
            while received.last() != Some(&Received::Nothing) {
                received.push(session.notifications.receive(|_| {}).unwrap());
            }
            assert!(received.contains(&Received::Overrun), "no notification was lost: {received:?}");
            // What was received above is lost to the session; it has to hear of the next overrun itself.
            for last in 201..=254 {
                add(&mut netlink, last);
            }
            session.take_notifications().unwrap();
            // Nothing but an overrun makes the neighbours stale.
            assert!(session.stale.tables && session.stale.routes && session.stale.neighbours);
            session.turn(session.refreshed + REFRESH_INTERVAL).unwrap();
            let state = session.view().state();
            assert!((1..=254).all(|last| state.is_local(address(last))));
        })
        .join()
        .unwrap();
    }

    proptest! {
        #[test]
        fn any_notification_is_taken_without_panic(kind in 0_u16..120, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut view = View::new(&[(PortId(0), "eth0".to_owned())]);
            let mut stale = Stale::default();
            take_notification(&mut view, &mut stale, Message { kind, flags: 0, sequence: 0, payload: &payload });
        }
    }
}
