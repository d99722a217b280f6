//! Clients that are neighbours: the kernel is asked for their link addresses, like those of real servers, once they
//! get replies that the director translates. Others are behind gateways, which are always known.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::forward::NextHop;
use crate::types::{Duration, Instant};

/// Most of them at a time: as many neighbours as a kernel keeps by default, four times over.
const MAX_CLIENTS: usize = 4096;
/// How long one is followed. If it gets replies after that, it is asked for again, which the kernel answers at once.
const LIFETIME: Duration = Duration::from_secs(600);
/// How often those are looked for whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Who is followed, since when.
#[derive(Debug, Default)]
pub(super) struct Clients {
    asked: HashMap<IpAddr, Instant>,
    swept: Instant,
}

impl Clients {
    /// Who is followed.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.asked.keys().copied()
    }

    /// Follows these as well, and no longer those whose time is over. Where there are too many, those go first that
    /// `ways` says cannot be reached, then those that were asked for longest ago. Says whether anything changed.
    pub(super) fn update(
        &mut self,
        more: impl Iterator<Item = IpAddr>,
        ways: &HashMap<IpAddr, NextHop>,
        now: Instant,
    ) -> bool {
        let mut changed = false;
        if now >= self.swept + SWEEP_INTERVAL {
            self.swept = now;
            let before = self.asked.len();
            self.asked.retain(|_, asked| now < *asked + LIFETIME);
            changed = self.asked.len() != before;
        }
        for client in more {
            if self.asked.contains_key(&client) {
                continue;
            }
            if self.asked.len() >= MAX_CLIENTS {
                let is_reachable = |client| !matches!(ways.get(client), Some(NextHop::Failed(_)));
                let least = self.asked.iter().min_by_key(|(client, asked)| (is_reachable(client), **asked));
                if let Some(least) = least.map(|(client, _)| *client) {
                    self.asked.remove(&least);
                }
            }
            self.asked.insert(client, now);
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::NextHopError;

    fn client(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        [10, 0, high, low].into()
    }

    fn after(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn clients_are_followed_for_a_while_after_they_were_asked_for() {
        let (mut clients, ways) = (Clients::default(), HashMap::new());
        assert!(clients.update([client(1), client(1)].into_iter(), &ways, after(100)));
        assert!(!clients.update([client(1)].into_iter(), &ways, after(101)), "known");
        assert!(clients.update([client(2)].into_iter(), &ways, after(690)));
        assert_eq!(clients.addresses().count(), 2);
        assert!(clients.update(std::iter::empty(), &ways, after(760)));
        assert_eq!(clients.addresses().collect::<Vec<_>>(), [client(2)]);
    }

    #[test]
    fn where_there_are_too_many_the_dead_and_then_the_oldest_go() {
        let (mut clients, mut ways) = (Clients::default(), HashMap::new());
        for number in 0..MAX_CLIENTS as u16 {
            assert!(clients.update(
                [client(number)].into_iter(),
                &ways,
                after(100 + u64::from(number) / 100)
            ));
        }
        ways.insert(client(4000), NextHop::Failed(NextHopError::NeighbourFailed));
        assert!(clients.update([client(5000)].into_iter(), &ways, after(141)));
        assert!(!clients.asked.contains_key(&client(4000)), "the dead one stays");
        assert!(clients.update([client(5001)].into_iter(), &ways, after(141)));
        assert_eq!(clients.asked.len(), MAX_CLIENTS);
        let oldest = clients.asked.values().filter(|asked| **asked == after(100)).count();
        assert_eq!(oldest, 99);
    }
}
