//! Tests of the ports on real interfaces: veth pairs between network namespaces. They need root.

#[cfg(feature = "afxdp")]
mod afxdp;
mod host;
mod packet;
mod xdp;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{PacketOptions, PacketPort, Port};
use crate::director::{Batch, Offload};
use crate::sys::frames::FramePool;
use crate::sys::interface::InterfaceControl;
use crate::types::PortId;

/// Frames of our own in tests have this protocol, of IEEE's for local experiments; the stack ignores them.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// How long anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One test at a time: the kernel's queue of frames for the stack is per processor, not per namespace, and a
/// test that fills it takes frames from the others.
static ALONE: Mutex<()> = Mutex::new(());

/// Most frames that a test lets wait in the kernel's queue for the stack; it takes 1000 per processor.
const BURST: u32 = 200;

/// Network namespaces of one test, removed with this value.
struct Namespaces {
    names: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Namespaces {
    /// Makes `count` namespaces, or says why the test is skipped.
    fn new(test: &str, count: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("UVS_REQUIRE_ROOT").is_none(),
                "UVS_REQUIRE_ROOT is set, and we are not root"
            );
            eprintln!("SKIPPED: needs root for network namespaces");
            return None;
        }
        let mut this = Self { names: Vec::new(), _alone: ALONE.lock() };
        for index in 0..count {
            let name = format!("uvsport-{}-{test}-{index}", std::process::id());
            this.ip(&["netns", "add", &name]);
            this.names.push(name);
        }
        Some(this)
    }

    /// Runs ip(8). Words `@n` stand for the name of namespace n.
    fn ip(&self, words: &[&str]) {
        let words = words.iter().map(|word| match word.strip_prefix('@') {
            Some(index) => self.names[index.parse::<usize>().unwrap()].as_str(),
            None => word,
        });
        let output = Command::new("ip").args(words.clone()).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {:?}: {complaint}", words.collect::<Vec<_>>());
    }

    /// Makes a veth pair, up at both ends, with nothing of its own to say.
    fn pair(&self, (one_in, one): (&str, &str), (other_in, other): (&str, &str), mtu: &str, queues: &str) {
        self.ip(&[
            "link",
            "add",
            one,
            "netns",
            one_in,
            "mtu",
            mtu,
            "numtxqueues",
            queues,
            "numrxqueues",
            queues,
            "type",
            "veth",
            "peer",
            "name",
            other,
            "netns",
            other_in,
            "mtu",
            mtu,
            "numtxqueues",
            queues,
            "numrxqueues",
            queues,
        ]);
        for (namespace, name) in [(one_in, one), (other_in, other)] {
            self.ip(&["-n", namespace, "link", "set", name, "addrgenmode", "none"]);
            self.ip(&["-n", namespace, "link", "set", name, "up"]);
        }
    }

    /// Runs something in a namespace, on a thread of its own. What it opens stays there.
    fn inside<T: Send>(&self, index: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.names[index]);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(path).unwrap();
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// The index of an interface in a namespace.
    fn interface(&self, namespace: usize, name: &str) -> u32 {
        self.inside(namespace, || InterfaceControl::new().unwrap().index(name).unwrap())
    }

    /// Frames that went out of an interface, or were dropped by the stack behind it.
    fn sent(&self, namespace: usize, name: &str) -> u64 {
        let words = ["-n", &self.names[namespace], "-s", "-j", "link", "show", name];
        let output = Command::new("ip").args(words).output().unwrap();
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counters = &links[0]["stats64"]["tx"];
        counters["packets"].as_u64().unwrap() + counters["dropped"].as_u64().unwrap()
    }

    /// A raw socket on an interface, with frames of its own.
    fn tap(&self, namespace: usize, name: &str) -> Tap {
        let interface = self.interface(namespace, name);
        let open = || PacketPort::open(PortId(9), interface, PacketOptions::default());
        let port = self.inside(namespace, open).unwrap();
        Tap { port, frames: FramePool::new(128, 69_632).unwrap(), batch: Batch::new() }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// A test's own end of a link.
struct Tap {
    port: PacketPort,
    frames: FramePool,
    batch: Batch,
}

impl Tap {
    fn send(&mut self, bytes: &[u8]) {
        let frame = self.frames.allocate_copy(bytes).unwrap();
        self.port.transmit(&mut self.frames, frame, Offload::default());
        self.port.flush(&mut self.frames);
    }

    /// Frames of the tests' own protocol that wait.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        self.receive_all().into_iter().map(|(bytes, _)| bytes).filter(|bytes| is_experiment(bytes)).collect()
    }

    /// All frames that wait.
    fn receive_all(&mut self) -> Vec<(Vec<u8>, Offload)> {
        self.port.receive(&mut self.frames, &mut self.batch);
        let mut got = Vec::new();
        for entry in self.batch.drain() {
            got.push((self.frames.bytes(&entry.frame).to_vec(), entry.offload));
            self.frames.free(entry.frame);
        }
        got
    }

    /// Waits for `count` frames of the tests' own protocol.
    fn expect(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        wait_for("frames at the tap", || {
            got.extend(self.receive());
            got.len() >= count
        });
        got
    }
}

fn is_experiment(bytes: &[u8]) -> bool {
    bytes.get(12..14) == Some(&EXPERIMENT[..]) || bytes.get(16..18) == Some(&EXPERIMENT[..])
}

/// A frame of the tests' own, told by its number.
fn experiment(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; length];
    bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&EXPERIMENT);
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(200));
    }
}
