//! What tests of the whole program share: network namespaces, processes in them, directors, and an end for all of it.
//!
//! Everything is driven from outside, by `ip`, `nsenter` and the program itself, as an operator would. Every command
//! has a timeout, every namespace and process ends when its owner is dropped, by a panic too, and what a killed test
//! left behind is removed by the next one.

// Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod director;
mod servers;
pub(crate) mod traffic;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use uvs::sys::namespace::enter_network;
use uvs::types::Family;

/// The program under test.
pub(crate) const UVS: &str = env!("CARGO_BIN_EXE_uvs");
/// How long a command may take.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long something may take to come about: long, since the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// What the names of namespaces and directories begin with; the process's id follows.
const PREFIX: &str = "uvs-e2e-";

/// Whether the test can run. Without root it says so and does not, unless that is required.
#[must_use]
pub(crate) fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "UVS_REQUIRE_ROOT=1, but this is not root"
    );
    eprintln!("SKIPPED: needs root for network namespaces, raw sockets and BPF");
    false
}

/// Waits until `done`.
///
/// # Panics
/// Where that takes longer than [`DEADLINE`].
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in {} s", DEADLINE.as_secs());
        std::thread::sleep(POLL);
    }
}

/// Tells threads to stop when it is dropped, by a panic too.
pub(crate) struct StopWhenDropped<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) what: String,
    /// As a shell has it: 128 and the signal's number where a signal ended it.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// What it printed.
    ///
    /// # Panics
    /// Where it failed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}\n{}{}", self.what, self.stdout, self.stderr);
        self.stdout
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A process that ends with this value at the latest.
#[derive(Debug)]
pub(crate) struct Process {
    what: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    /// Its status, where it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child of ours").map(code)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it does not end in `timeout`.
    #[track_caller]
    pub(crate) fn wait(&mut self, timeout: Duration) -> Finished {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "{} does not end\n{}{}",
                self.what,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(POLL);
        };
        Finished { what: self.what.clone(), status, stdout: self.stdout(), stderr: self.stderr() }
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A place of its own for a test: a directory, and network namespaces.
#[derive(Debug)]
pub(crate) struct Site {
    id: String,
    directory: PathBuf,
    /// Of the addresses in it.
    family: Family,
    namespaces: Vec<String>,
    outputs: AtomicU32,
}

impl Site {
    /// An empty one for IPv4, after a look for what killed tests left.
    pub(crate) fn new() -> Self {
        Self::of(Family::V4)
    }

    /// An empty one for a family of addresses.
    pub(crate) fn of(family: Family) -> Self {
        static SITES: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let id = format!("{PREFIX}{}-{}", std::process::id(), SITES.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&id);
        fs::create_dir_all(directory.join("bin")).unwrap();
        symlink(UVS, directory.join("bin/ipvsadm")).unwrap();
        symlink(UVS, directory.join("bin/ipvsadm-save")).unwrap();
        symlink(UVS, directory.join("bin/ipvsadm-restore")).unwrap();
        symlink(UVS, directory.join("bin/uvs")).unwrap();
        Self { id, directory, family, namespaces: Vec::new(), outputs: AtomicU32::new(0) }
    }

    /// A path in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The control socket that commands in this site talk to.
    pub(crate) fn control(&self) -> PathBuf {
        self.path("control")
    }

    /// Makes a namespace, known to the other functions as `name`.
    pub(crate) fn add(&mut self, name: &str) {
        let full = self.full(name);
        self.command(Command::new("ip").args(["netns", "add", &full])).ok();
        self.namespaces.push(name.to_owned());
        let settings: &[&str] = match self.family {
            // IPv6 neighbours and routers have nothing to say here, and would be counted.
            Family::V4 => &["disable_ipv6=1"],
            // Addresses are there at once, and all that is to be known is in the layout.
            Family::V6 => &["accept_dad=0", "accept_ra=0", "accept_redirects=0"],
        };
        let settings = settings.iter().map(|setting| {
            format!("sysctl -qw net.ipv6.conf.default.{setting} net.ipv6.conf.all.{setting}; ")
        });
        self.run(name, &format!("{}ip link set lo up", settings.collect::<String>())).ok();
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    fn file_of(&self, name: &str) -> PathBuf {
        Path::new("/run/netns").join(self.full(name))
    }

    /// Joins two namespaces by a pair of interfaces, both up, with as many queues each way.
    pub(crate) fn join(&self, one: (&str, &str), other: (&str, &str), queues: u32) {
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.run(
            one.0,
            &format!(
                "ip link add {} {queues} type veth peer name {} netns {} {queues} && ip link set {} up",
                one.1,
                other.1,
                self.full(other.0),
                one.1
            ),
        )
        .ok();
        self.run(other.0, &format!("ip link set {} up", other.1)).ok();
    }

    /// Runs a line of bash in a namespace, with `ipvsadm` and `uvs` first in PATH.
    pub(crate) fn run(&self, namespace: &str, line: &str) -> Finished {
        self.start(namespace, "bash", ["-c", line]).wait(COMMAND_TIMEOUT)
    }

    /// Starts a program in a namespace. It ends with the calling thread.
    pub(crate) fn start<S: AsRef<OsStr>>(
        &self,
        namespace: &str,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Process {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.file_of(namespace));
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: its mount namespace would take the director's pins along.
        command.arg(net).args(["setpriv", "--pdeathsig", "KILL", program]).args(arguments);
        self.spawn(&mut command)
    }

    fn command(&self, command: &mut Command) -> Finished {
        self.spawn(command).wait(COMMAND_TIMEOUT)
    }

    fn spawn(&self, command: &mut Command) -> Process {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) = (self.path(&format!("{number}.out")), self.path(&format!("{number}.err")));
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:/usr/sbin:/sbin:{path}", self.path("bin").display()))
            .env("UVS_CONTROL", self.control())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        let what = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        Process { what, child, stdout, stderr }
    }

    /// Runs `work` in a thread inside a namespace; sockets opened there stay there.
    pub(crate) fn inside<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.file_of(namespace)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter_network(file.as_fd()).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into a namespace, for good.
    pub(crate) fn enter(&self, namespace: &str) {
        enter_network(File::open(self.file_of(namespace)).unwrap().as_fd()).unwrap();
    }

    /// Names for hosts that `ip netns exec` shows to programs in a namespace, and so do [`with_names`].
    ///
    /// [`with_names`]: Self::with_names
    pub(crate) fn name_hosts(&self, namespace: &str, hosts: &str) {
        let directory = Path::new("/etc/netns").join(self.full(namespace));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts"), format!("127.0.0.1 localhost\n{hosts}\n")).unwrap();
    }

    /// The name server of programs that are shown those names.
    pub(crate) fn set_name_server(&self, namespace: &str, address: &str) {
        let directory = Path::new("/etc/netns").join(self.full(namespace));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("resolv.conf"), format!("nameserver {address}\n")).unwrap();
    }

    /// As [`run`](Self::run), and [`name_hosts`](Self::name_hosts) counts.
    pub(crate) fn with_names(&self, namespace: &str, line: &str) -> Finished {
        self.command(Command::new("ip").args(["netns", "exec", &self.full(namespace), "bash", "-c", line]))
    }

    /// A number out of a namespace's /proc/net/snmp, as `Tcp`, `OutRsts`.
    pub(crate) fn snmp(&self, namespace: &str, table: &str, column: &str) -> u64 {
        let text = self.run(namespace, "cat /proc/thread-self/net/snmp").ok();
        let mut rows = text.lines().filter_map(|line| line.strip_prefix(table)?.strip_prefix(':'));
        let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
        let at = names.split_whitespace().position(|name| name == column).unwrap();
        values.split_whitespace().nth(at).unwrap().parse().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in &self.namespaces {
            remove_namespace(&self.full(name));
        }
        remove_directory(&self.directory);
    }
}

/// Ends the processes in a namespace, all of them started by its test, and the namespace.
fn remove_namespace(full: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", full]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            // Not the test itself, some of whose threads are in there.
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw)
                && pid != rustix::process::getpid()
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", full]).output();
    let _ = fs::remove_dir_all(Path::new("/etc/netns").join(full));
    // Only where it was made for tests, and is empty again.
    let _ = fs::remove_dir("/etc/netns");
}

/// Removes a directory and what is mounted below it.
fn remove_directory(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(place).starts_with(directory) {
            let _ = Command::new("umount").arg(place).output();
        }
    }
    let _ = fs::remove_dir_all(directory);
}

/// Removes what tests left that were killed.
fn remove_leftovers() {
    let dead = |name: &str| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| dead(name)).collect()
    };
    names(Path::new("/run/netns")).iter().for_each(|name| remove_namespace(name));
    let temporary = std::env::temp_dir();
    names(&temporary).iter().for_each(|name| remove_directory(&temporary.join(name)));
}
