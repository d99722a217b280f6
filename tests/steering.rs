//! Steering on real interfaces: a client and a director in network namespaces, joined by veth. The director's
//! namespace has the service's address itself, so whatever is not steered is answered by the host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, Protocol as SocketProtocol, RecvFlags, SocketType, recv, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use uvs::io::steering::{
    SteeredInterface, Steering, SteeringError, SteeringKey, SteeringKind, SteeringOptions, detach,
};
use uvs::types::Protocol;

/// On the director's `lo`.
const VIP: &str = "192.0.2.10";
/// The director's interface. The dot is what VLAN interfaces have, and a bpffs does not take.
const INTERFACE: &str = "dir.7";
/// How long a connection is tried that must not come about.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long anything else may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// What a packet socket of all protocols is asked for with: 3, in network order.
const ETH_P_ALL_ON_THE_WIRE: u32 = 3_u16.to_be() as u32;
/// Says to [`child_director`] that it is one: namespace, directory and kind.
const CHILD: &str = "UVS_TEST_STEERING_CHILD";

fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none(), "UVS_REQUIRE_ROOT is set");
    eprintln!("SKIPPED: needs root for network namespaces and BPF");
    false
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work` in a network namespace, in a thread of its own, so that mounts stay as they are.
fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(Path::new("/run/netns").join(name)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The namespaces, and a directory for the director.
struct Lab {
    client: String,
    director: String,
    directory: PathBuf,
    _listeners: Vec<TcpListener>,
}

impl Lab {
    fn new(tag: &str) -> Self {
        let id = std::process::id();
        let (client, director) = (format!("uvs-steer-{tag}-{id}-c"), format!("uvs-steer-{tag}-{id}-d"));
        let directory = std::env::temp_dir().join(format!("uvs-steer-{tag}-{id}"));
        let mut lab = Self { client, director, directory, _listeners: Vec::new() };
        for namespace in [&lab.client, &lab.director] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("-n {} addr add {VIP}/32 dev lo", lab.director));
        lab.connect_namespaces();
        lab._listeners = in_namespace(&lab.director, || {
            [80, 8080].map(|port| TcpListener::bind((VIP, port)).unwrap()).into()
        });
        lab
    }

    fn connect_namespaces(&self) {
        let (client, director) = (&self.client, &self.director);
        let queues = "numrxqueues 1 numtxqueues 1";
        ip(&format!(
            "link add cli netns {client} {queues} type veth peer name {INTERFACE} netns {director} {queues}"
        ));
        ip(&format!("-n {client} addr add 198.51.100.1/24 dev cli"));
        ip(&format!("-n {director} addr add 198.51.100.2/24 dev {INTERFACE}"));
        ip(&format!("-n {client} link set cli up"));
        ip(&format!("-n {director} link set {INTERFACE} up"));
        ip(&format!("-n {client} route add {VIP} via 198.51.100.2"));
    }

    fn options(&self, kind: SteeringKind, keys: BTreeSet<SteeringKey>) -> SteeringOptions {
        let interface = SteeredInterface { name: INTERFACE.to_owned(), queues: 1, kind };
        SteeringOptions { directory: self.directory.clone(), interfaces: vec![interface], keys }
    }

    /// Starts; says whether something was adopted. Expects pins.
    fn start(&self, kind: SteeringKind, keys: BTreeSet<SteeringKey>) -> (Steering, bool) {
        let options = self.options(kind, keys);
        let (steering, reports) = in_namespace(&self.director, || Steering::start(&options)).unwrap();
        assert_eq!(reports.len(), 1);
        assert!(reports[0].pinned && reports[0].warnings.is_empty(), "{reports:?}");
        (steering, reports[0].adopted)
    }

    fn refused(&self, options: &SteeringOptions) -> SteeringError {
        in_namespace(&self.director, || Steering::start(options).map(|_| ())).unwrap_err()
    }

    /// Whether the host answers the client at this port of the VIP. Resets are as wrong as can be.
    fn answers(&self, port: u16, patience: Duration) -> bool {
        let address = SocketAddr::new(VIP.parse().unwrap(), port);
        match in_namespace(&self.client, || TcpStream::connect_timeout(&address, patience)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::TimedOut => false,
            Err(error) => panic!("port {port}: {error}"),
        }
    }

    fn assert_steered(&self, when: &str) {
        assert!(!self.answers(80, PATIENCE), "{when}: the host answered for the service");
        assert!(self.answers(8080, DEADLINE), "{when}: the host's own port is cut off");
    }

    fn assert_not_steered(&self, when: &str) {
        assert!(self.answers(80, DEADLINE), "{when}: the service's port is still taken");
    }

    /// The mode of the XDP program on the director's interface: none, 1 in the driver, 2 in the stack.
    fn xdp_mode(&self) -> Option<u64> {
        let text = ip(&format!("-n {} -j -d link show dev {INTERFACE}", self.director));
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["xdp"]["mode"].as_u64().filter(|&mode| mode != 0)
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.xdp_mode(), None);
        let left: Vec<_> = fs::read_dir(&self.directory).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// A director in a process of its own, which steers [`keys`].
    fn spawn_director(&self, kind: SteeringKind) -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_director", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{} {} {kind}", self.director, self.directory.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().any(|line| line.unwrap().contains("child is ready"));
        assert!(ready, "the child did not start: {:?}", child.wait());
        child
    }

    fn crash_director(&self, kind: SteeringKind) {
        kill(self.spawn_director(kind));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = in_namespace(&self.director, || detach(&self.directory, None));
        for namespace in [&self.client, &self.director] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// SIGKILL: the director has no say in how it ends.
fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn kind_named(name: &str) -> SteeringKind {
    KINDS.into_iter().find(|kind| kind.name() == name).unwrap()
}

const KINDS: [SteeringKind; 3] = [SteeringKind::XdpNative, SteeringKind::XdpGeneric, SteeringKind::Guard];

fn keys() -> BTreeSet<SteeringKey> {
    let address: IpAddr = VIP.parse().unwrap();
    BTreeSet::from([
        SteeringKey::Transport { address, protocol: Protocol::Tcp, port: 80 },
        // As for a mark: the stream to port 53 of the address is in it.
        SteeringKey::Network { prefix: "192.0.2.0/24".parse().unwrap(), protocol: Protocol::Udp },
    ])
}

/// No test, but what [`Lab::spawn_director`] runs.
#[test]
fn child_director() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let [namespace, directory, kind] = order.split(' ').collect::<Vec<_>>()[..] else { panic!("{order}") };
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    let interface = SteeredInterface { name: INTERFACE.to_owned(), queues: 1, kind: kind_named(kind) };
    let options = SteeringOptions { directory: directory.into(), interfaces: vec![interface], keys: keys() };
    let _steering = Steering::start(&options).unwrap();
    println!("child is ready");
    // Ends with the parent, at the latest.
    let _ = std::io::stdin().lines().next();
    std::process::exit(1);
}

#[test]
fn every_kind_takes_services_and_leaves_the_rest() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("kinds");
    lab.assert_not_steered("before");
    for (kind, mode) in
        [(SteeringKind::XdpNative, Some(1)), (SteeringKind::XdpGeneric, Some(2)), (SteeringKind::Guard, None)]
    {
        let (mut steering, adopted) = lab.start(kind, keys());
        assert!(!adopted, "{kind}");
        assert_eq!(lab.xdp_mode(), mode, "{kind}");
        lab.assert_steered(kind.name());
        steering.set_keys(&BTreeSet::new()).unwrap();
        lab.assert_not_steered("without keys");
        steering.set_keys(&keys()).unwrap();
        lab.assert_steered("with keys again");
        steering.stop().unwrap();
        lab.assert_not_steered("after stop");
        lab.assert_nothing_left();
    }
}

/// Destination ports of the TCP frames that wait in a raw socket.
fn ports_seen(socket: &OwnedFd) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let mut frame = [0_u8; 2048];
    while let Ok((length, _)) = recv(socket, &mut frame[..], RecvFlags::DONTWAIT) {
        assert!(length >= 38 && frame[23] == 6, "not TCP: {:?}", &frame[..length]);
        ports.insert(u16::from_be_bytes([frame[36], frame[37]]));
    }
    ports
}

#[test]
fn a_raw_socket_sees_what_the_guard_takes_and_nothing_else() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("raw");
    let (steering, _) = lab.start(SteeringKind::Guard, keys());
    let every_protocol = SocketProtocol::from_raw(ETH_P_ALL_ON_THE_WIRE.try_into().unwrap());
    let raw = in_namespace(&lab.director, || {
        socket(AddressFamily::PACKET, SocketType::RAW, Some(every_protocol)).unwrap()
    });
    steering.attach_filter(raw.as_fd()).unwrap();
    // What came in before the filter does not count.
    let mut frame = [0_u8; 2048];
    while recv(&raw, &mut frame[..], RecvFlags::DONTWAIT).is_ok() {}
    lab.assert_steered("with a raw socket");
    assert_eq!(ports_seen(&raw), BTreeSet::from([80]));
    steering.stop().unwrap();
}

/// Sends UDP to the service without pause, and says when some more has gone out.
struct Stream<'lab> {
    lab: &'lab Lab,
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Stream<'_> {
    fn run(&self) {
        in_namespace(&self.lab.client, || {
            let socket = UdpSocket::bind("198.51.100.1:0").unwrap();
            let started = Instant::now();
            while !self.stop.load(Ordering::Relaxed) && started.elapsed() < DEADLINE {
                if socket.send_to(b"x", (VIP, 53)).is_ok() {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
    }

    fn wait_for_more(&self) {
        let (before, started) = (self.sent.load(Ordering::Relaxed), Instant::now());
        while self.sent.load(Ordering::Relaxed) < before + 20 {
            assert!(started.elapsed() < DEADLINE, "the stream dried up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn not_one_frame_reaches_the_host_from_crash_to_adoption() {
    if !is_root() {
        return;
    }
    use SteeringKind::{Guard, XdpGeneric, XdpNative};
    let lab = Lab::new("crash");
    for (first, second) in [
        (XdpNative, XdpNative),
        (XdpNative, XdpGeneric),
        (XdpGeneric, XdpNative),
        (XdpGeneric, Guard),
        (Guard, Guard),
        (Guard, XdpNative),
    ] {
        let change = format!("{first} to {second}");
        let child = lab.spawn_director(first);
        let host = in_namespace(&lab.director, || UdpSocket::bind((VIP, 53)).unwrap());
        host.set_nonblocking(true).unwrap();
        let stream = Stream { lab: &lab, stop: AtomicBool::new(false), sent: AtomicU64::new(0) };
        let (mut steering, adopted) = std::thread::scope(|scope| {
            scope.spawn(|| stream.run());
            stream.wait_for_more();
            kill(child);
            stream.wait_for_more();
            // No keys of its own: what it finds must do.
            let started = lab.start(second, BTreeSet::new());
            stream.wait_for_more();
            stream.stop.store(true, Ordering::Relaxed);
            started
        });
        assert!(adopted, "{change}");
        let error = host.recv(&mut [0; 8]).expect_err(&change);
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{change}");
        lab.assert_steered(&change);
        // The same stream of frames does reach the host once the keys are gone.
        steering.set_keys(&BTreeSet::new()).unwrap();
        lab.assert_not_steered(&change);
        steering.stop().unwrap();
        lab.assert_not_steered(&change);
        lab.assert_nothing_left();
    }
}

#[test]
fn a_failed_start_leaves_the_dead_directors_frames_dropped() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("retry");
    for end in [
        format!("-n {} link set cli mtu 9000", lab.client),
        format!("-n {} link set {INTERFACE} mtu 9000", lab.director),
    ] {
        ip(&end);
    }
    lab.crash_director(SteeringKind::XdpGeneric);
    let options = lab.options(SteeringKind::XdpNative, BTreeSet::new());
    let error = lab.refused(&options);
    assert!(error.to_string().contains("MTU"), "{error}");
    assert!(error.is_worth_trying_generic());
    lab.assert_steered("after the refusal");
    let (steering, adopted) = lab.start(SteeringKind::XdpGeneric, BTreeSet::new());
    assert!(adopted);
    lab.assert_steered("with generic XDP instead");
    steering.stop().unwrap();
    lab.assert_not_steered("after stop");
    lab.assert_nothing_left();
}

#[test]
fn a_live_directors_interface_is_refused_and_a_dead_ones_detached() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("live");
    let child = lab.spawn_director(SteeringKind::XdpNative);
    let pid = child.id();
    let options = lab.options(SteeringKind::Guard, BTreeSet::new());
    for error in [
        lab.refused(&options),
        in_namespace(&lab.director, || detach(&lab.directory, Some(INTERFACE))).unwrap_err(),
    ] {
        let expected = format!("{INTERFACE}: another director (pid {pid}) has it; stop that one first");
        assert_eq!(error.to_string(), expected);
    }
    let all = detach(&lab.directory, None).unwrap();
    assert_eq!((all.removed.len(), &all.in_use), (0, &vec![(INTERFACE.to_owned(), Some(pid))]));
    lab.assert_steered("while it lives");

    kill(child);
    lab.assert_steered("when it is dead");
    let one = in_namespace(&lab.director, || detach(&lab.directory, Some(INTERFACE))).unwrap();
    assert_eq!((one.removed, one.in_use), (vec![INTERFACE.to_owned()], vec![]));
    lab.assert_not_steered("after detach");
    lab.assert_nothing_left();

    lab.crash_director(SteeringKind::Guard);
    lab.assert_steered("when it is dead again");
    assert_eq!(detach(&lab.directory, None).unwrap().removed, [INTERFACE]);
    lab.assert_not_steered("after detaching everything");
    lab.assert_nothing_left();
    assert_eq!(detach(&lab.directory, None).unwrap(), Default::default());
}

#[test]
fn somebody_elses_program_is_told_and_left_alone() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("busy");
    // A dead director's, seen from another directory: as good as another program.
    lab.crash_director(SteeringKind::XdpNative);
    for kind in [SteeringKind::XdpNative, SteeringKind::XdpGeneric] {
        let mut options = lab.options(kind, keys());
        options.directory = lab.directory.join("second");
        let error = lab.refused(&options);
        assert!(error.to_string().contains("another XDP program is attached"), "{error}");
        assert!(!error.is_worth_trying_generic());
        assert_eq!(fs::read_dir(&options.directory).unwrap().count(), 0);
        fs::remove_dir(&options.directory).unwrap();
    }
    lab.assert_steered("by the first");
    assert_eq!(detach(&lab.directory, None).unwrap().removed, [INTERFACE]);
    lab.assert_nothing_left();
}

#[test]
fn interfaces_are_attached_all_or_none() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("none");
    let mut options = lab.options(SteeringKind::XdpNative, keys());
    let mut missing = options.interfaces[0].clone();
    missing.name = "missing".to_owned();
    options.interfaces.push(missing);
    let error = lab.refused(&options);
    assert!(error.to_string().contains("missing: no such interface"), "{error}");
    lab.assert_not_steered("after the refusal");
    lab.assert_nothing_left();
}

#[test]
fn without_a_directory_steering_ends_with_the_director() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("unpinned");
    let mut options = lab.options(SteeringKind::XdpGeneric, keys());
    options.directory = "/proc/uvs".into();
    let (steering, reports) = in_namespace(&lab.director, || Steering::start(&options)).unwrap();
    assert!(!reports[0].pinned);
    assert!(reports[0].warnings[0].contains("neither locked nor pinned"), "{reports:?}");
    lab.assert_steered("unpinned");
    drop(steering);
    lab.assert_not_steered("after its end");
    assert_eq!(lab.xdp_mode(), None);
}

#[test]
fn an_interface_made_anew_is_not_adopted() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("anew");
    lab.crash_director(SteeringKind::XdpNative);
    ip(&format!("-n {} link del {INTERFACE}", lab.director));
    lab.connect_namespaces();
    lab.assert_not_steered("on the new interface");
    let (steering, adopted) = lab.start(SteeringKind::XdpNative, keys());
    assert!(!adopted);
    lab.assert_steered("by the new director");
    // Stopping works without the interface, too.
    ip(&format!("-n {} link del {INTERFACE}", lab.director));
    steering.stop().unwrap();
    lab.connect_namespaces();
    lab.assert_nothing_left();
}

#[test]
fn what_keeps_xdp_out_of_a_driver_is_told() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("native");
    let (client, director) = (&lab.client, &lab.director);
    ip(&format!(
        "link add few netns {director} numrxqueues 1 numtxqueues 1 type veth peer name many netns {client} \
         numrxqueues 2 numtxqueues 2"
    ));
    ip(&format!("-n {director} link set few up"));
    ip(&format!("-n {client} link set many up"));
    for (interface, cause, cure) in
        [("lo", "driver has no XDP", "generic XDP"), ("few", "too few queues", "numrxqueues")]
    {
        let mut options = lab.options(SteeringKind::XdpNative, keys());
        options.interfaces[0].name = interface.to_owned();
        let error = lab.refused(&options);
        let text = error.to_string();
        assert!(text.starts_with(&format!("{interface}: ")), "{text}");
        assert!(text.contains(cause) && text.contains(cure), "{text}");
        assert!(error.is_worth_trying_generic(), "{text}");
        options.interfaces[0].kind = SteeringKind::XdpGeneric;
        let (steering, _) = in_namespace(director, || Steering::start(&options)).unwrap();
        steering.stop().unwrap();
        lab.assert_nothing_left();
    }
}
