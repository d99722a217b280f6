//! How addresses and ports are written: as numbers or as names.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use crate::control::names::Names;
use crate::types::Protocol;

/// How many names of addresses are remembered while one listing is printed. Beyond, each is asked for anew.
const REMEMBERED: usize = 65_536;

/// Writes addresses and ports, as numbers or as names.
pub struct Labels<'a> {
    names: Option<&'a dyn Names>,
    /// Asking for a name may take seconds, and servers come up again and again.
    hosts: RefCell<HashMap<IpAddr, Option<String>>>,
}

impl std::fmt::Debug for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Labels").field("numeric", &self.names.is_none()).finish_non_exhaustive()
    }
}

impl<'a> Labels<'a> {
    /// Numbers only: `-n`.
    pub fn numeric() -> Self {
        Self { names: None, hosts: RefCell::default() }
    }

    /// Names where there are any.
    pub fn named(names: &'a dyn Names) -> Self {
        Self { names: Some(names), hosts: RefCell::default() }
    }

    /// `address:port`, with brackets round IPv6.
    pub fn endpoint(&self, address: IpAddr, port: u16, protocol: Option<Protocol>) -> String {
        let host = self.host(address).unwrap_or_else(|| address.to_string());
        let named = self.names.zip(protocol).filter(|_| port != 0);
        let port = named
            .and_then(|(names, protocol)| names.service_of(port, protocol))
            .unwrap_or_else(|| port.to_string());
        match address {
            IpAddr::V4(_) => format!("{host}:{port}"),
            IpAddr::V6(_) => format!("[{host}]:{port}"),
        }
    }

    /// The same, cut to what a table has room for; IPv6 is never cut, its columns shift.
    pub(super) fn cut_endpoint(&self, address: IpAddr, port: u16, protocol: Option<Protocol>) -> String {
        let mut text = self.endpoint(address, port, protocol);
        if address.is_ipv4() && text.len() > COLUMN {
            let end = (0..=COLUMN).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(end);
        }
        text
    }

    fn host(&self, address: IpAddr) -> Option<String> {
        let names = self.names?;
        if let Some(known) = self.hosts.borrow().get(&address) {
            return known.clone();
        }
        let name = names.host_of(address);
        let mut hosts = self.hosts.borrow_mut();
        if hosts.len() < REMEMBERED {
            hosts.insert(address, name.clone());
        }
        name
    }
}

/// The width of the first column of a table, in bytes.
pub(super) const COLUMN: usize = 28;
