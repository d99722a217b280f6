//! Names of hosts and of ports, both ways.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::OnceLock;

use crate::types::{Family, Protocol};

/// Where names come from: the system for programs, a fixed table for tests.
pub trait Names {
    /// The address of a host's name, an IPv4 one if there is one.
    fn address_of(&self, host: &str) -> Option<IpAddr>;
    /// The address of a host's name in one family.
    fn address_in(&self, host: &str, family: Family) -> Option<IpAddr> {
        self.address_of(host).filter(|address| Family::of(*address) == family)
    }
    /// The name of an address.
    fn host_of(&self, address: IpAddr) -> Option<String>;
    /// The port of a service's name or alias.
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16>;
    /// The name of a port.
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String>;
}

/// The names of the host: its resolver, and `/etc/services`.
#[derive(Debug, Default)]
pub struct SystemNames {
    ports: OnceLock<PortNames>,
}

impl SystemNames {
    /// Reads nothing yet: files are read when the first name is asked for.
    pub fn new() -> Self {
        Self::default()
    }

    fn ports(&self) -> &PortNames {
        self.ports.get_or_init(|| {
            // Without the file there are still the well-known names.
            let bytes = std::fs::read("/etc/services").unwrap_or_default();
            let bytes = &bytes[..bytes.len().min(MAX_SERVICES_FILE)];
            PortNames::new(&String::from_utf8_lossy(bytes))
        })
    }
}

fn resolve(host: &str) -> Option<Vec<IpAddr>> {
    Some((host, 0).to_socket_addrs().ok()?.map(|found| found.ip()).collect())
}

/// How much of `/etc/services` is read, in bytes. The largest in use have some 800 KiB.
const MAX_SERVICES_FILE: usize = 4 << 20;

impl Names for SystemNames {
    fn address_of(&self, host: &str) -> Option<IpAddr> {
        let addresses = resolve(host)?;
        addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
    }

    fn address_in(&self, host: &str, family: Family) -> Option<IpAddr> {
        resolve(host)?.into_iter().find(|address| Family::of(*address) == family)
    }

    fn host_of(&self, address: IpAddr) -> Option<String> {
        crate::sys::names::host_of(address)
    }

    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.ports().port_of(service, protocol)
    }

    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.ports().service_of(port, protocol).map(str::to_owned)
    }
}

/// Names of ports, as `/etc/services` has them.
#[derive(Debug, Default)]
pub struct PortNames {
    ports: HashMap<(String, Protocol), u16>,
    names: HashMap<(u16, Protocol), String>,
}

impl PortNames {
    /// Reads the text of `/etc/services`; the first line wins. [`WELL_KNOWN`] names come after it.
    pub fn new(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines().chain(WELL_KNOWN.lines()) {
            table.add(line);
        }
        table
    }

    fn add(&mut self, line: &str) {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (Some(name), Some(number)) = (words.next(), words.next()) else { return };
        let Some((port, protocol)) = number.split_once('/') else { return };
        let Ok(port) = port.parse::<u16>() else { return };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return,
        };
        self.names.entry((port, protocol)).or_insert_with(|| name.to_owned());
        for name in std::iter::once(name).chain(words) {
            self.ports.entry((name.to_owned(), protocol)).or_insert(port);
        }
    }

    /// The port of a name or alias.
    pub fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.ports.get(&(service.to_owned(), protocol)).copied()
    }

    /// The name of a port.
    pub fn service_of(&self, port: u16, protocol: Protocol) -> Option<&str> {
        self.names.get(&(port, protocol)).map(String::as_str)
    }
}

/// Names that are known where the file is missing or lacks them, in its format.
pub const WELL_KNOWN: &str = "\
ftp-data 20/tcp
ftp 21/tcp
ssh 22/tcp
telnet 23/tcp
smtp 25/tcp mail
domain 53/tcp
domain 53/udp
tftp 69/udp
http 80/tcp www
kerberos 88/tcp
kerberos 88/udp
pop3 110/tcp
ntp 123/udp
imap2 143/tcp imap
snmp 161/udp
ldap 389/tcp
https 443/tcp
https 443/udp
submissions 465/tcp
isakmp 500/udp
syslog 514/udp
submission 587/tcp
ldaps 636/tcp
imaps 993/tcp
pop3s 995/tcp
openvpn 1194/udp
radius 1812/udp
radius-acct 1813/udp
mysql 3306/tcp
sip 5060/tcp
sip 5060/udp
sip-tls 5061/tcp
postgresql 5432/tcp
redis 6379/tcp
http-alt 8080/tcp
";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names that no machine's files can change.
    #[derive(Debug)]
    pub(crate) struct FixedNames {
        pub(crate) ports: PortNames,
        pub(crate) hosts: Vec<(&'static str, IpAddr)>,
    }

    impl FixedNames {
        pub(crate) fn new(hosts: &[(&'static str, &str)]) -> Self {
            let hosts = hosts.iter().map(|&(name, address)| (name, address.parse().unwrap())).collect();
            Self { ports: PortNames::new(""), hosts }
        }
    }

    impl Names for FixedNames {
        fn address_of(&self, host: &str) -> Option<IpAddr> {
            self.hosts.iter().find(|(name, _)| *name == host).map(|&(_, address)| address)
        }

        fn host_of(&self, address: IpAddr) -> Option<String> {
            self.hosts.iter().find(|row| row.1 == address).map(|&(name, _)| name.to_owned())
        }

        fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
            self.ports.port_of(service, protocol)
        }

        fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
            self.ports.service_of(port, protocol).map(str::to_owned)
        }
    }

    #[test]
    fn the_file_wins_over_what_is_well_known() {
        let names =
            PortNames::new("# comment\nweb\t80/tcp www # The web\nhttp 8000/tcp\nbad\nbad 1/xx\nbad x/tcp\n");
        assert_eq!(names.port_of("web", Protocol::Tcp), Some(80));
        assert_eq!(names.port_of("www", Protocol::Tcp), Some(80));
        assert_eq!(names.port_of("http", Protocol::Tcp), Some(8000));
        assert_eq!(names.service_of(80, Protocol::Tcp), Some("web"));
        assert_eq!(names.port_of("tftp", Protocol::Udp), Some(69));
        assert_eq!(names.port_of("tftp", Protocol::Tcp), None);
        assert_eq!(names.port_of("bad", Protocol::Tcp), None);
    }

    #[test]
    fn the_system_knows_itself() {
        let names = SystemNames::new();
        assert!(names.address_of("localhost").is_some_and(|address| address.is_loopback()));
        assert_eq!(names.address_of("no-such-host.invalid"), None);
        assert_eq!(names.port_of("https", Protocol::Tcp), Some(443));
        assert_eq!(names.service_of(443, Protocol::Tcp).as_deref(), Some("https"));
    }
}
