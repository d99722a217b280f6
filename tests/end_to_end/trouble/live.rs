//! A running director with clients, and what is said to it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use uvs::control::command::Command;
use uvs::control::protocol::{MAX_COMMANDS, MAX_MESSAGE, Request, write_message};

use super::start::{filled, says, write_files};
use super::{Effect, Files, Input, TABLE, Told};
use crate::support::cluster::{CLIENT, Cluster, ONE_ARM, PLAIN_PORT};
use crate::support::director::{Director, PortType};
use crate::support::traffic::Client;
use crate::support::{DEADLINE, Finished, is_root, wait_for};

/// A SYN and two more tries.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// When a connection is to be refused.
pub(super) const BRIEFLY: Duration = Duration::from_millis(500);
/// The port of the service whose real server is out of reach.
const UNREACHABLE: u16 = 9100;

/// A running director with a service, and its surroundings.
pub(super) struct Live<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) director: Director<'a>,
    port_type: PortType,
}

impl<'a> Live<'a> {
    pub(super) fn start(cluster: &'a Cluster, port_type: PortType, options: &[&str]) -> Self {
        let director = Director::start(&cluster.site, "director", &["eth0"], port_type, options);
        cluster.add_plain_service();
        Self { cluster, director, port_type }
    }

    fn connect_to(&self, port: u16, timeout: Duration) -> std::io::Result<Client> {
        let source = SocketAddrV4::new(CLIENT.parse::<Ipv4Addr>().unwrap(), 0);
        let service = SocketAddrV4::new(self.cluster.layout.vip.parse().unwrap(), port);
        self.cluster.site.inside("client", || Client::connect(source, service, timeout))
    }

    pub(super) fn connect(&self, timeout: Duration) -> std::io::Result<Client> {
        self.connect_to(PLAIN_PORT, timeout)
    }

    /// One request on a connection of its own.
    pub(super) fn request(&self, timeout: Duration) -> std::io::Result<String> {
        self.connect(timeout)?.get(true)
    }

    fn rules(&self) -> String {
        self.director.run("ipvsadm-save -n").ok()
    }

    pub(super) fn open_control(&self) -> UnixStream {
        UnixStream::connect(self.cluster.site.control()).unwrap()
    }

    /// Writes to the control socket; what the director answers before it hangs up.
    fn control(&self, bytes: &[u8]) -> String {
        let mut stream = self.open_control();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The director may hang up in the middle of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Starts a second director, with each kind of port.
    fn second(&self, files: Files) -> Vec<Finished> {
        let site = &self.cluster.site;
        let other = site.path("other");
        let other = other.to_str().unwrap();
        let own = ["--control", other, "--state-directory", other];
        let own = match files {
            Files::All => &own[..0],
            Files::StateDirectory => &own[..2],
            Files::None => &own[..],
        };
        let second = |port_type| Director::launch(site, "director", &["eth0"], port_type, own).wait(DEADLINE);
        let finished = PortType::ALL.map(second).into();
        assert_eq!(std::fs::read_dir(other).into_iter().flatten().count(), 0, "nothing is left in {other}");
        finished
    }

    /// A client calls a service whose only real server is at `address`, until `counter` has counted it.
    fn call_to(&self, address: &str, before: &str, counter: &str) {
        let counted = self.director.dropped(counter);
        let service = format!("-t {}:{UNREACHABLE}", self.cluster.layout.vip);
        self.director.run(before).ok();
        self.director.run(&format!("ipvsadm -A {service}; ipvsadm -a {service} -r {address} -g")).ok();
        wait_for("the packet is counted", || {
            assert!(self.connect_to(UNREACHABLE, BRIEFLY).is_err());
            self.director.dropped(counter) > counted
        });
        self.director.run(&format!("ipvsadm -D {service}")).ok();
    }

    /// Lets a row happen, and checks what is said of it. Says whether it was one for a running director.
    fn happens(&self, input: &Input, told: &Told, what: &str) -> bool {
        let site = &self.cluster.site;
        let logged = self.director.log().len();
        match (input, told) {
            (Input::Command(line), _) => {
                let line = filled(line, site).replace("VIP", self.cluster.layout.vip);
                says(told, &self.director.run(&line), site, what);
            }
            (Input::Control(bytes), Told::Answers(words)) => {
                let answer = self.control(&bytes());
                assert!(answer.contains(words), "{what}: {answer}");
            }
            (Input::Control(bytes), Told::Nothing) => assert_eq!(self.control(&bytes()), "", "{what}"),
            (Input::Second(files), Told::NamesTheFirst) => {
                let message = format!(
                    "eth0: another director (pid {}) has it; stop that one first",
                    self.director.id()
                );
                for second in self.second(*files) {
                    assert_eq!(second.status, 1, "{what}: {}", second.stderr);
                    assert!(second.stderr.contains(&message), "{what}: {}", second.stderr);
                }
            }
            (Input::Second(files), _) => {
                self.second(*files).iter().for_each(|second| says(told, second, site, what));
            }
            (Input::CallTo(address, before), Told::Counts(reason)) => self.call_to(address, before, reason),
            (Input::Befalls(event), Told::Logs(words)) => {
                event(self);
                wait_for(words, || self.director.log()[logged..].contains(words));
            }
            (Input::Befalls(event), Told::Nothing) => event(self),
            (Input::Frames(_) | Input::Start(..) | Input::StartWithoutPrivileges, _)
            | (Input::CommandForNobody(_), _) => return false,
            _ => panic!("{what}: that is not how it would be told"),
        }
        true
    }
}

/// Everything that may happen to a running director, one after the other.
fn all_of_it(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    write_files(&cluster.site);
    let mut live = Live::start(&cluster, port_type, &[]);
    let mut kept = live.connect(PATIENCE).unwrap();
    kept.get(false).unwrap();
    let rules = live.rules();
    for (row, (input, told, effect)) in TABLE.iter().enumerate() {
        let what = format!("row {row}, {told:?}, {:?}", live.port_type);
        if !live.happens(input, told, &what) {
            continue;
        }
        assert!(live.director.is_running(), "{what}: {}", live.director.log());
        assert!(!live.director.log().contains("panicked"), "{what}: {}", live.director.log());
        assert_eq!(live.rules(), rules, "{what}");
        match effect {
            Effect::GoesOn => {
                kept.get(false).unwrap_or_else(|error| panic!("{what}: the connection there was: {error}"));
                live.request(PATIENCE).unwrap_or_else(|error| panic!("{what}: a new connection: {error}"));
            }
            // It has told its rules.
            Effect::Answers => assert!(live.request(BRIEFLY).is_err(), "{what}"),
            _ => panic!("{what}: no such effect on a running director"),
        }
    }
    live.director.check();
    live.director.stop();
}

#[test]
fn nothing_disturbs_a_director_in_the_driver() {
    all_of_it(PortType::XdpNative);
}

#[test]
fn nothing_disturbs_a_director_in_the_stack() {
    all_of_it(PortType::XdpGeneric);
}

#[test]
fn nothing_disturbs_a_director_on_raw_sockets() {
    all_of_it(PortType::Packet);
}

/// A message of these bytes.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

pub(super) fn nothing() -> Vec<u8> {
    Vec::new()
}

/// Its first four bytes are a length to the director.
pub(super) fn a_web_request() -> Vec<u8> {
    b"GET / HTTP/1.0\r\n\r\n".to_vec()
}

pub(super) fn zeros() -> Vec<u8> {
    vec![0; 64]
}

pub(super) fn an_announced_gigabyte() -> Vec<u8> {
    [&(1_u32 << 30).to_be_bytes()[..], &vec![b'x'; 2 * MAX_MESSAGE]].concat()
}

pub(super) fn no_json() -> Vec<u8> {
    message(b"hello")
}

pub(super) fn an_unknown_request() -> Vec<u8> {
    message(b"{\"Nonsense\":1}")
}

pub(super) fn half_a_request() -> Vec<u8> {
    b"\0\0\0\x20{\"Comm".to_vec()
}

pub(super) fn too_many_commands() -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, &Request::Commands(vec![Command::Flush; MAX_COMMANDS + 1])).unwrap();
    bytes
}

/// Some say nothing for as long as it takes, many go in the middle of a request.
pub(super) fn silence_and_half_requests(live: &Live<'_>) {
    let silent: Vec<UnixStream> = (0..8).map(|_| live.open_control()).collect();
    for _ in 0..100 {
        let _ = live.open_control().write_all(&half_a_request());
    }
    live.director.run("uvs stats").ok();
    live.rules();
    drop(silent);
}
