//! A director as a process.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uvs::lab::Namespace;

use super::Plan;

const PROGRAM: &str = env!("CARGO_BIN_EXE_uvs");
/// How long something may take to come about: long, since the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Waits until `done`.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in {} s", DEADLINE.as_secs());
        std::thread::sleep(POLL);
    }
}

/// A running director. Dropping it kills it.
#[derive(Debug)]
pub struct Director {
    namespace: Arc<Namespace>,
    plan: Plan,
    child: Child,
    directory: PathBuf,
}

/// Frames by verdict, and those of each worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frames {
    pub received: u64,
    pub released: u64,
    pub ended: u64,
    pub transmitted: u64,
    pub to_host: u64,
    pub dropped: u64,
}

impl Frames {
    fn read(frames: &Value) -> Self {
        let count = |name: &str| frames[name].as_u64().unwrap();
        let dropped: u64 = frames["dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        Self {
            received: count("received"),
            released: count("released"),
            ended: count("held") + count("transmitted") + count("replied") + count("to_host") + dropped,
            transmitted: count("transmitted"),
            to_host: count("to_host"),
            dropped,
        }
    }
}

impl Director {
    pub fn start(run: &str, namespace: Arc<Namespace>, plan: Plan, interfaces: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(run);
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--connections", "65536", "--workers", &plan.workers.to_string()]);
        command.args(plan.ports.options());
        command.arg("--control").arg(directory.join("control"));
        command.arg("--state-directory").arg(directory.join("state"));
        interfaces.iter().for_each(|interface| {
            command.args(["--interface", interface]);
        });
        let log = File::create(directory.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = namespace.spawn(&mut command).unwrap();
        let mut director = Self { namespace, plan, child, directory };
        wait_for("the director is ready", || {
            if let Some(status) = director.child.try_wait().unwrap() {
                panic!("the director ended with {status}:\n{}", director.log());
            }
            director.log().contains("ready")
        });
        director
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub fn control(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// Runs `uvs ARGUMENTS` and gives what it printed.
    #[track_caller]
    pub fn uvs(&self, arguments: &[&str]) -> String {
        let output =
            Command::new(PROGRAM).args(arguments).env("UVS_CONTROL", self.control()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "uvs {arguments:?}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn adm(&self, arguments: &[&str]) -> String {
        self.uvs(&[&["adm"], arguments].concat())
    }

    pub fn stats(&self) -> Value {
        serde_json::from_str(&self.uvs(&["stats", "--json"])).unwrap()
    }

    /// The frames, once they stand still; each worker's too. Every frame has ended in one way, as the sum of all
    /// workers says, each worker for itself, and each interface, and the ports are of the kind that was asked for.
    #[track_caller]
    pub fn settled(&self) -> (Frames, Vec<Frames>) {
        let deadline = Instant::now() + DEADLINE;
        let mut last = Value::Null;
        loop {
            let mut stats = self.stats();
            for port in stats["ports"].as_array_mut().unwrap() {
                // A worker that wakes to see whether it is to end looks for frames.
                port["system_calls"] = Value::Null;
            }
            // Workers write down what their ports counted every few dozen milliseconds.
            if stats == last {
                break;
            }
            assert!(Instant::now() < deadline, "the counters do not stand still: {last:#} {stats:#}");
            last = stats;
            std::thread::sleep(Duration::from_millis(250));
        }
        let total = Frames::read(&last["frames"]);
        let parts = |of: &str| -> Vec<Frames> {
            last[of].as_array().unwrap().iter().map(|part| Frames::read(&part["frames"])).collect()
        };
        let (workers, interfaces) = (parts("workers"), parts("interfaces"));
        assert_eq!(workers.len(), self.plan.workers);
        for frames in workers.iter().chain(&interfaces).chain([&total]) {
            assert_eq!(frames.received + frames.released, frames.ended, "{last:#}");
        }
        for parts in [&workers, &interfaces] {
            assert_eq!(total.received, parts.iter().map(|frames| frames.received).sum::<u64>(), "{last:#}");
        }
        for port in last["ports"].as_array().unwrap() {
            assert_eq!(port["kind"], self.plan.ports.kind(), "{last:#}");
        }
        (total, workers)
    }

    /// A port counter, summed over workers.
    pub fn port_sum(&self, interface: &str, counter: &str) -> u64 {
        let stats = self.stats();
        let ports = stats["ports"].as_array().unwrap();
        ports
            .iter()
            .filter(|port| port["interface"] == interface)
            .map(|port| port[counter].as_u64().unwrap())
            .sum()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end, and checks that it does so well.
    #[track_caller]
    pub fn stop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut status = None;
        wait_for("the director ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", self.log());
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the director's log:\n{}", self.log());
        }
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // What was killed leaves pins; what was stopped does not.
        let state = self.directory.join("state");
        let _ = self.namespace.run(|| {
            Command::new(PROGRAM).args(["detach", "--state-directory"]).arg(&state).output().map(drop)
        });
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if std::path::Path::new(place).starts_with(&self.directory) {
                let _ = Command::new("umount").arg(place).output();
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
