//! The network that the recordings were made in, and as much of a shell as they use.

use std::ffi::OsString;
use std::net::IpAddr;

use uvs::control::names::{Names, PortNames};
use uvs::director::Capacity;
use uvs::replay::{Bench, Interface, Neighbour, Output, Terminal, Topology};
use uvs::types::{Duration, MacAddress, PortId, Prefix, Protocol};

/// The clients' side.
pub(crate) const CLIENTS: PortId = PortId(0);
/// The real servers' side.
pub(crate) const SERVERS: PortId = PortId(1);
/// The router that all clients are behind.
pub(crate) const ROUTER: MacAddress = MacAddress([2, 0, 0x0a, 0x58, 1, 1]);
/// The director, as clients see it.
pub(crate) const DIRECTOR: MacAddress = MacAddress([2, 0, 0x0a, 0x58, 1, 0xfe]);
/// How long a step takes: the recordings' have no times, and took a few milliseconds each.
const STEP: Duration = Duration::from_millis(5);

/// Names of ports, and of no host.
pub(crate) struct PlainNames(PortNames);

impl Names for PlainNames {
    fn address_of(&self, _: &str) -> Option<IpAddr> {
        None
    }
    fn host_of(&self, _: IpAddr) -> Option<String> {
        None
    }
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.0.port_of(service, protocol)
    }
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.0.service_of(port, protocol).map(str::to_owned)
    }
}

/// The link address of real server `number`, 1 to 5.
pub(crate) fn server_mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0x0a, 0x58, 2, 10 + number])
}

fn topology() -> Topology {
    let network = |text: &str| text.parse::<Prefix>().unwrap();
    // `fd88::100` is written as `10.88.0.100` is: its last group is not a hundred.
    let virtual_addresses = (100..=120).flat_map(|last: u8| {
        let v6: IpAddr = format!("fd88::{last}").parse().unwrap();
        [Prefix::host([10, 88, 0, last].into()), Prefix::host(v6)]
    });
    let clients_side = ["10.88.1.254/24", "fd88:1::fe/64"].map(network);
    let interfaces = vec![
        Interface {
            name: "c".to_owned(),
            addresses: clients_side.into_iter().chain(virtual_addresses).collect(),
            mac: DIRECTOR,
        },
        Interface {
            name: "s".to_owned(),
            addresses: ["10.88.2.254/24", "fd88:2::fe/64"].map(network).into(),
            mac: MacAddress([2, 0, 0x0a, 0x58, 2, 0xfe]),
        },
    ];
    let routers = ["10.88.1.1", "fd88:1::1"].map(|text| text.parse::<IpAddr>().unwrap());
    let mut neighbours: Vec<Neighbour> =
        routers.iter().map(|&address| Neighbour { address, mac: ROUTER, port: None }).collect();
    for number in 1..=5 {
        let v6: IpAddr = format!("fd88:2::{}", 10 + number).parse().unwrap();
        for address in [[10, 88, 2, 10 + number].into(), v6] {
            neighbours.push(Neighbour { address, mac: server_mac(number), port: None });
        }
    }
    Topology::new(interfaces, &neighbours, routers.into()).unwrap()
}

/// What a command line printed, and how it ended.
#[derive(Default, Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: i32,
}

/// The director in the recordings' network.
pub(crate) struct Lab {
    pub(crate) bench: Bench,
    names: PlainNames,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_connections(12_288)
    }

    /// With room for so many connections.
    pub(crate) fn with_connections(connections: u32) -> Self {
        let capacity = Capacity { connections, servers: 256, workers: 1 };
        let bench = Bench::new(topology(), capacity).unwrap();
        Self { bench, names: PlainNames(PortNames::new("")) }
    }

    /// Gives the director a frame, and time for it.
    pub(crate) fn send(&mut self, port: PortId, frame: &[u8]) -> Vec<Output> {
        let now = self.bench.now();
        let outputs = self.bench.feed(port, frame, now).unwrap();
        assert_eq!(self.bench.advance(now + STEP), [], "nothing has to wait here");
        assert!(self.bench.is_conserved());
        outputs
    }

    /// The same with a fragment, which may set others free.
    pub(crate) fn send_fragment(&mut self, port: PortId, frame: &[u8]) -> Vec<Output> {
        let now = self.bench.now();
        let mut outputs = self.bench.feed(port, frame, now).unwrap();
        outputs.extend(self.bench.advance(now + STEP));
        assert!(self.bench.is_conserved());
        outputs
    }

    pub(crate) fn sleep(&mut self, seconds: f64) {
        let span = Duration::from_nanos((seconds * 1e9) as u64);
        assert_eq!(self.bench.advance(self.bench.now() + span), [], "nothing has to wait here");
    }

    /// Runs `ipvsadm` with these words and input.
    pub(crate) fn ipvsadm(&mut self, words: &str, mut input: &[u8]) -> Outcome {
        let args: Vec<OsString> =
            std::iter::once("ipvsadm").chain(words.split_whitespace()).map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let terminal = Terminal { names: &self.names, stdout: &mut stdout, stderr: &mut stderr };
        let status = self.bench.run(&args, &mut input, terminal);
        self.sleep(STEP.as_nanos() as f64 / 1e9);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { stdout: text(stdout), stderr: text(stderr), status }
    }

    /// Runs `ipvsadm-restore`.
    pub(crate) fn restore(&mut self, mut input: &[u8]) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let terminal = Terminal { names: &self.names, stdout: &mut stdout, stderr: &mut stderr };
        let status = self.bench.run(&["ipvsadm-restore".into()], &mut input, terminal);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { stdout: text(stdout), stderr: text(stderr), status }
    }

    /// Runs `uvs mark` with these words.
    pub(crate) fn mark(&mut self, words: &str) -> Outcome {
        let args: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let terminal = Terminal { names: &self.names, stdout: &mut stdout, stderr: &mut stderr };
        let status = self.bench.mark(&args, terminal);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { stdout: text(stdout), stderr: text(stderr), status }
    }

    /// Runs what the recordings have for a shell.
    pub(crate) fn shell(&mut self, script: &str) -> Outcome {
        let mut all = Outcome::default();
        for line in script.split(['\n', ';']).map(str::trim).filter(|line| !line.is_empty()) {
            let outcome = self.pipeline(line, all.status);
            all.stdout.push_str(&outcome.stdout);
            all.stderr.push_str(&outcome.stderr);
            all.status = outcome.status;
        }
        all
    }

    fn pipeline(&mut self, line: &str, last: i32) -> Outcome {
        let mut commands = line.split('|').map(str::trim);
        let mut outcome = self.command(commands.next().unwrap_or_default(), last);
        for filter in commands {
            let mut lines: Vec<&str> = outcome.stdout.lines().collect();
            match filter {
                "tail -n +3" => drop(lines.drain(..lines.len().min(2))),
                "tail -3" => drop(lines.drain(..lines.len().saturating_sub(3))),
                "sort" => lines.sort_unstable(),
                other => panic!("'{other}' in '{line}': no such filter is known"),
            }
            outcome.stdout = lines.iter().map(|line| format!("{line}\n")).collect();
            outcome.status = 0;
        }
        outcome
    }

    fn command(&mut self, line: &str, last: i32) -> Outcome {
        let (program, words) = line.split_once(' ').unwrap_or((line, ""));
        match program {
            "ipvsadm" => return self.ipvsadm(words, b""),
            // An operator's script changes the program's name.
            "iptables-legacy" => return self.mark(words),
            "ip6tables-legacy" => return self.mark(&format!("-6 {words}")),
            "sleep" => self.sleep(words.parse().unwrap_or_else(|_| panic!("'{line}'"))),
            "sysctl" => {
                let setting = words.strip_prefix("-qw ").and_then(|setting| setting.split_once('='));
                let (name, value) = setting.unwrap_or_else(|| panic!("'{line}': not as expected"));
                assert!(name.starts_with("net.ipv4.vs."), "'{line}': not the director's");
                if let Err(error) = self.bench.set(name, value) {
                    return Outcome { stderr: format!("{error}\n"), status: 255, ..Outcome::default() };
                }
            }
            // A module of the kernel's, for FTP behind NAT.
            "$(cat" if line == "$(cat /proc/sys/kernel/modprobe) ip_vs_ftp" => {}
            // What the kernel has learnt about a path: not the director's.
            "ip" if words.starts_with("route get ") => {}
            "echo" if words == "$?" => {
                return Outcome { stdout: format!("{last}\n"), ..Outcome::default() };
            }
            _ => panic!("'{line}': no such command is known"),
        }
        Outcome::default()
    }
}
