//! A director as a process, started and looked at as an operator does.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{DEADLINE, Finished, Process, Site, UVS, wait_for};

/// How frames are taken off the director's interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortType {
    XdpNative,
    XdpGeneric,
    Packet,
}

impl PortType {
    pub(crate) const ALL: [Self; 3] = [Self::XdpNative, Self::XdpGeneric, Self::Packet];

    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::XdpNative => &["--io", "xdp", "--xdp-mode", "native"],
            Self::XdpGeneric => &["--io", "xdp", "--xdp-mode", "generic"],
            Self::Packet => &["--io", "packet"],
        }
    }

    /// The kind of port that `uvs stats` must show. A veth has no zero copy.
    fn kind(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp-native-copy",
            Self::XdpGeneric => "xdp-generic",
            Self::Packet => "packet",
        }
    }
}

/// A running director. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Director<'a> {
    site: &'a Site,
    namespace: String,
    port_type: PortType,
    interfaces: Vec<String>,
    process: Process,
}

impl<'a> Director<'a> {
    /// Starts one on these interfaces and waits until it answers.
    #[track_caller]
    pub(crate) fn start(
        site: &'a Site,
        namespace: &str,
        interfaces: &[&str],
        port_type: PortType,
        more: &[&str],
    ) -> Self {
        let mut process = Self::launch(site, namespace, interfaces, port_type, more);
        wait_for("the director answers", || {
            if let Some(status) = process.ended() {
                panic!("the director ended with {status}\n{}", process.stderr());
            }
            process.stderr().contains("ready")
        });
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        Self { site, namespace: namespace.to_owned(), port_type, interfaces, process }
    }

    /// Starts the process and waits for nothing.
    pub(crate) fn launch(
        site: &Site,
        namespace: &str,
        interfaces: &[&str],
        port_type: PortType,
        more: &[&str],
    ) -> Process {
        let (control, state) = (site.control(), Self::state_directory(site));
        let mut arguments = vec!["run"];
        interfaces.iter().for_each(|name| arguments.extend(["--interface", name]));
        arguments.extend(port_type.options());
        arguments.extend(more);
        for (option, value) in [
            ("--control", control.to_str().unwrap()),
            ("--state-directory", state.to_str().unwrap()),
            // A machine of this size has no room for a million connections in each of many tests.
            ("--connections", "65536"),
        ] {
            if !more.contains(&option) {
                arguments.extend([option, value]);
            }
        }
        site.start(namespace, UVS, arguments)
    }

    /// Where locks and pins are.
    pub(crate) fn state_directory(site: &Site) -> PathBuf {
        site.path("state")
    }

    /// `uvs stats --json`.
    pub(crate) fn stats(&self) -> Value {
        let text = self.run("uvs stats --json").ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Frames dropped for a reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.stats()["frames"]["dropped"][reason].as_u64().unwrap_or(0)
    }

    /// Checks that its ports are of the kind they should be, that the first received something, and that no frame got
    /// lost between the counters, of all, of any interface, or of any worker.
    #[track_caller]
    pub(crate) fn check(&self) {
        let received = |stats: &Value, interface: &str| -> u64 {
            let ports = stats["ports"].as_array().unwrap().iter();
            ports
                .filter(|port| port["interface"] == interface)
                .filter_map(|port| port["received"].as_u64())
                .sum()
        };
        // Workers write their ports' counters down every few dozen milliseconds.
        wait_for("frames are counted at the port", || received(&self.stats(), &self.interfaces[0]) > 0);
        let stats = self.stats();
        let ports = stats["ports"].as_array().unwrap();
        for interface in &self.interfaces {
            assert!(ports.iter().any(|port| port["interface"] == **interface), "{interface}: {stats:#}");
        }
        assert!(ports.iter().all(|port| port["kind"] == self.port_type.kind()), "{stats:#}");
        let parts = |of: &str| stats[of].as_array().unwrap().iter().map(|part| &part["frames"]);
        assert_eq!(parts("interfaces").count(), self.interfaces.len(), "{stats:#}");
        for frames in parts("interfaces").chain(parts("workers")).chain([&stats["frames"]]) {
            let count = |name: &str| frames[name].as_u64().unwrap();
            let dropped: u64 =
                frames["dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
            assert_eq!(
                count("received") + count("released"),
                count("held") + count("transmitted") + count("replied") + count("to_host") + dropped,
                "{stats:#}"
            );
        }
        for of in ["interfaces", "workers"] {
            let received: u64 = parts(of).map(|frames| frames["received"].as_u64().unwrap()).sum();
            assert_eq!(received, stats["frames"]["received"].as_u64().unwrap(), "{of}: {stats:#}");
        }
    }

    /// Runs a line of bash where the director runs.
    pub(crate) fn run(&self, line: &str) -> Finished {
        self.site.run(&self.namespace, line)
    }

    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// Whether it has ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal and waits for its end.
    #[track_caller]
    fn end(&mut self, signal: Signal) -> Finished {
        self.process.signal(signal);
        self.process.wait(DEADLINE)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM, after which it ends well and leaves nothing.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        let interfaces = std::mem::take(&mut self.interfaces);
        let finished = self.end(Signal::TERM);
        assert_eq!(finished.status, 0, "{}", finished.stderr);
        assert_nothing_left(self.site, &self.namespace, &interfaces);
    }
}

/// Checks that no director has left anything in the namespace: no program, no device, no pin, no lock.
#[track_caller]
pub(crate) fn assert_nothing_left(site: &Site, namespace: &str, interfaces: &[String]) {
    // The kernel takes a link away some moments after its last holder.
    wait_for("no XDP program on any interface", || {
        interfaces.iter().all(|interface| {
            let shown = site.run(namespace, &format!("ip -j -d link show dev {interface}")).ok();
            let shown: Value = serde_json::from_str(&shown).unwrap();
            shown[0]["xdp"]["mode"].as_u64().is_none_or(|mode| mode == 0)
        })
    });
    let links = site.run(namespace, "ip -o link").ok();
    assert!(!links.contains(": uvs"), "{links}");
    let state = Director::state_directory(site);
    let left: Vec<_> =
        std::fs::read_dir(&state).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(state.to_str().unwrap()), "{mounts}");
    assert!(!site.control().exists(), "the control socket is left");
}

/// How long a director without work is given to look at something.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);
