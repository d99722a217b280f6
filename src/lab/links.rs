//! Interfaces, addresses and routes inside a [`Namespace`], over netlink.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use super::namespace::Namespace;
use crate::net::constants as k;
use crate::net::message::{Request, family, octets};
use crate::net::{Link, NetlinkError};
use crate::types::{Family, MacAddress, Prefix};

/// Longest name of an interface in bytes (IFNAMSIZ without the zero).
pub const MAX_INTERFACE_NAME: usize = 15;
/// IFA_FLAGS, and IFA_F_NODAD in it: the address is usable at once.
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x2;

/// One end of a pair of virtual Ethernet interfaces.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// The namespace it lies in.
    pub namespace: &'a Namespace,
    /// Its name, at most [`MAX_INTERFACE_NAME`] bytes.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its receive queues, and as many transmit queues. A native XDP program can only be attached to an end
    /// that has at least as many receive queues as the other has transmit queues.
    pub queues: u32,
}

impl VethEnd<'_> {
    fn describe(&self, request: Request) -> Request {
        request
            .text(k::IFLA_IFNAME, self.name)
            .attribute(k::IFLA_ADDRESS, &self.mac.0)
            .number(k::IFLA_NUM_TX_QUEUES, self.queues)
            .number(k::IFLA_NUM_RX_QUEUES, self.queues)
    }
}

/// Makes a pair of virtual Ethernet interfaces, switched off; it vanishes with either's namespace.
///
/// # Errors
/// The kernel's refusal, as when a name is taken.
pub fn add_veth(one: &VethEnd<'_>, other: &VethEnd<'_>) -> Result<(), NetlinkError> {
    let namespace = other.namespace.as_fd().as_raw_fd() as u32;
    let request = one
        .describe(Request::new(k::RTM_NEWLINK, k::NLM_F_CREATE | k::NLM_F_EXCL, &[0; k::LINK_FIXED]))
        .nested(k::IFLA_LINKINFO, |request| {
            request.text(k::IFLA_INFO_KIND, "veth").nested(k::IFLA_INFO_DATA, |request| {
                request.nested_after(k::VETH_INFO_PEER, &[0; k::LINK_FIXED], |request| {
                    other.describe(request).number(k::IFLA_NET_NS_FD, namespace)
                })
            })
        });
    one.namespace.netlink().change("add a pair of virtual interfaces", request)
}

impl Namespace {
    /// Makes a bridge, switched off.
    ///
    /// # Errors
    /// The kernel's refusal, as when it has no bridges.
    pub fn add_bridge(&self, name: &str, mac: MacAddress) -> Result<(), NetlinkError> {
        let request = Request::new(k::RTM_NEWLINK, k::NLM_F_CREATE | k::NLM_F_EXCL, &[0; k::LINK_FIXED])
            .text(k::IFLA_IFNAME, name)
            .attribute(k::IFLA_ADDRESS, &mac.0)
            .nested(k::IFLA_LINKINFO, |request| request.text(k::IFLA_INFO_KIND, "bridge"));
        self.netlink().change("add a bridge", request)
    }

    /// The interface called `name`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        let request = Request::new(k::RTM_GETLINK, 0, &[0; k::LINK_FIXED]).text(k::IFLA_IFNAME, name);
        let mut link = None;
        self.netlink().get("look at the interface", request, |message| {
            link = link.take().or_else(|| Link::decode(message));
        })?;
        link.ok_or(NetlinkError::Garbled("look at the interface"))
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such interface.
    pub fn set_master(&self, name: &str, bridge: &str) -> Result<(), NetlinkError> {
        let bridge = self.link(bridge)?.index;
        self.change_link("join the bridge", name, 0, 0, |request| request.number(k::IFLA_MASTER, bridge))
    }

    /// Switches an interface on or off.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such interface.
    pub fn set_up(&self, name: &str, up: bool) -> Result<(), NetlinkError> {
        let flags = if up { k::IFF_UP } else { 0 };
        self.change_link("switch the interface", name, flags, k::IFF_UP, |request| request)
    }

    /// Gives an interface another Ethernet address.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such interface.
    pub fn set_mac(&self, name: &str, mac: MacAddress) -> Result<(), NetlinkError> {
        self.change_link("change the Ethernet address", name, 0, 0, |request| {
            request.attribute(k::IFLA_ADDRESS, &mac.0)
        })
    }

    /// Removes an interface, and with it the other end of its pair.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such interface.
    pub fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let fixed = link_fixed(self.link(name)?.index, 0, 0);
        self.netlink().change("remove the interface", Request::new(k::RTM_DELLINK, 0, &fixed))
    }

    fn change_link(
        &self,
        what: &'static str,
        name: &str,
        flags: u32,
        mask: u32,
        more: impl FnOnce(Request) -> Request,
    ) -> Result<(), NetlinkError> {
        let fixed = link_fixed(self.link(name)?.index, flags, mask);
        self.netlink().change(what, more(Request::new(k::RTM_NEWLINK, 0, &fixed)))
    }

    /// Gives an interface an address, usable at once, and the network around it.
    ///
    /// # Errors
    /// The kernel's refusal, as when it has the address already.
    pub fn add_address(&self, name: &str, address: Prefix) -> Result<(), NetlinkError> {
        let request = self.address(k::RTM_NEWADDR, k::NLM_F_CREATE | k::NLM_F_EXCL, name, address)?;
        let request = match address.address {
            IpAddr::V4(_) => request,
            IpAddr::V6(_) => request.number(IFA_FLAGS, IFA_F_NODAD),
        };
        self.netlink().change("add the address", request)
    }

    /// Takes an address away from an interface.
    ///
    /// # Errors
    /// The kernel's refusal, as when it has no such address.
    pub fn delete_address(&self, name: &str, address: Prefix) -> Result<(), NetlinkError> {
        let request = self.address(k::RTM_DELADDR, 0, name, address)?;
        self.netlink().change("remove the address", request)
    }

    fn address(&self, kind: u16, flags: u16, name: &str, address: Prefix) -> Result<Request, NetlinkError> {
        let mut fixed = [0; k::ADDRESS_FIXED];
        fixed[0] = family(address.address);
        fixed[1] = address.length;
        fixed[4..8].copy_from_slice(&self.link(name)?.index.to_ne_bytes());
        let octets = octets(address.address);
        Ok(Request::new(kind, flags, &fixed)
            .attribute(k::IFA_LOCAL, &octets)
            .attribute(k::IFA_ADDRESS, &octets))
    }

    /// Adds a route to `destination` through a gateway.
    ///
    /// # Errors
    /// The kernel's refusal, as when the gateway is not on any link.
    pub fn add_route(&self, destination: Prefix, gateway: IpAddr) -> Result<(), NetlinkError> {
        let request =
            route(k::RTM_NEWROUTE, k::NLM_F_CREATE | k::NLM_F_EXCL, destination, k::RT_SCOPE_UNIVERSE)
                .attribute(k::RTA_GATEWAY, &octets(gateway));
        self.netlink().change("add the route", request)
    }

    /// Adds a route to `destination`, whose hosts are all on the link of the interface `name`.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such interface.
    pub fn add_link_route(&self, destination: Prefix, name: &str) -> Result<(), NetlinkError> {
        let request = route(k::RTM_NEWROUTE, k::NLM_F_CREATE | k::NLM_F_EXCL, destination, k::RT_SCOPE_LINK)
            .number(k::RTA_OIF, self.link(name)?.index);
        self.netlink().change("add the route", request)
    }

    /// Removes the route to `destination` from the main table.
    ///
    /// # Errors
    /// The kernel's refusal, as when there is no such route.
    pub fn delete_route(&self, destination: Prefix) -> Result<(), NetlinkError> {
        // RT_SCOPE_NOWHERE: of any scope.
        let request = route(k::RTM_DELROUTE, 0, destination, u8::MAX);
        self.netlink().change("remove the route", request)
    }
}

fn link_fixed(index: u32, flags: u32, mask: u32) -> [u8; k::LINK_FIXED] {
    let mut fixed = [0; k::LINK_FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&mask.to_ne_bytes());
    fixed
}

fn route(kind: u16, flags: u16, destination: Prefix, scope: u8) -> Request {
    let network = destination.network();
    let unicast = if kind == k::RTM_DELROUTE { 0 } else { k::RTN_UNICAST };
    let protocol = if kind == k::RTM_DELROUTE { 0 } else { k::RTPROT_STATIC };
    let (family, length) = (family(network), destination.length.min(Family::of(network).bits()));
    let fixed = [family, length, 0, 0, k::RT_TABLE_MAIN, protocol, scope, unicast, 0, 0, 0, 0];
    let request = Request::new(kind, flags, &fixed);
    if length == 0 { request } else { request.attribute(k::RTA_DST, &octets(network)) }
}
