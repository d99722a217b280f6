//! The state as commands change it, without a packet in sight.

use super::*;
use crate::control::command::{Netmask, ServerSpec, ServiceSpec};
use crate::director::Capacity;
use crate::types::{Family, ForwardingMethod, HashKey};

struct Bench {
    state: State,
    shared: Arc<Shared>,
    now: Instant,
}

fn key(port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: "10.88.0.100".parse().unwrap(), port }
}

fn server(number: u8) -> IpAddr {
    IpAddr::from([10, 88, 2, number])
}

fn rr() -> ServiceSpec {
    ServiceSpec { scheduler: "rr".to_owned(), ..ServiceSpec::new(Family::V4) }
}

impl Bench {
    fn new(servers: usize) -> Self {
        let capacity = Capacity { connections: 16, servers, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]); 2]).unwrap();
        Self { state: State::new(Arc::clone(&shared), Instant::ZERO), shared, now: Instant::ZERO }
    }

    fn run(&mut self, command: Command) -> Result<(), ControlError> {
        self.state.execute(&command, self.now)
    }

    fn add_service(&mut self, port: u16) -> Result<(), ControlError> {
        self.run(Command::AddService { key: key(port), spec: rr() })
    }

    fn add_server(&mut self, port: u16, number: u8, weight: u32) -> Result<(), ControlError> {
        let spec = ServerSpec { weight, ..ServerSpec::default() };
        self.run(Command::AddServer { key: key(port), address: server(number), port, spec })
    }

    fn delete_server(&mut self, port: u16, number: u8) -> Result<(), ControlError> {
        self.run(Command::DeleteServer { key: key(port), address: server(number), port })
    }

    fn id(&self, number: u8) -> ServerId {
        self.state.wanted().find(|(_, address)| *address == server(number)).unwrap().0
    }

    fn pass(&mut self, seconds: u64) -> bool {
        self.now += Duration::from_secs(seconds);
        self.state.tick(self.now)
    }
}

/// A new connection, so many seconds from now.
fn flow(bench: &Bench, seconds: u64) -> crate::scheduler::Flow {
    let now = bench.now + Duration::from_secs(seconds);
    crate::scheduler::Flow { client: server(9), client_port: 1, destination: server(9), now }
}

#[test]
fn what_is_not_built_yet_is_refused_in_words_and_changes_nothing() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    let service = |key, spec| Command::AddService { key, spec };
    let rows = [(
        service(key(81), ServiceSpec { engine: Some("sip".to_owned()), ..rr() }),
        "the persistence engine 'sip' (--pe)",
    )];
    for (command, what) in rows {
        assert_eq!(bench.run(command), Err(ControlError::NotSupported(what.to_owned())));
    }
    let unknown = ServiceSpec { scheduler: "nosuch".to_owned(), ..rr() };
    assert_eq!(bench.run(service(key(81), unknown)), Err(ControlError::NoScheduler));
    let rows = bench.state.services(None).unwrap();
    assert_eq!((rows.len(), rows[0].servers.len()), (1, 0));
}

#[test]
fn errors_are_the_kernels() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    assert_eq!(bench.add_service(80), Err(ControlError::ServiceExists));
    assert_eq!(bench.add_server(80, 1, 1), Err(ControlError::ServerExists));
    assert_eq!(bench.add_server(81, 1, 1), Err(ControlError::ServiceNotDefined));
    assert_eq!(bench.delete_server(80, 2), Err(ControlError::NoSuchServer));
    assert_eq!(bench.run(Command::DeleteService { key: key(81) }), Err(ControlError::NoSuchService));
    assert_eq!(
        bench.run(Command::EditService { key: key(81), spec: rr() }),
        Err(ControlError::NoSuchService)
    );
    assert_eq!(bench.run(Command::Zero { service: Some(key(81)) }), Err(ControlError::NoSuchService));
    let spec = ServerSpec { upper_threshold: 5, lower_threshold: 10, ..ServerSpec::default() };
    // Said first, whether there is such a real server or not.
    for number in [1, 2] {
        let (key, address) = (key(80), server(number));
        for command in [
            Command::AddServer { key, address, port: 80, spec },
            Command::EditServer { key, address, port: 80, spec },
        ] {
            assert_eq!(bench.run(command), Err(ControlError::OutOfRange), "real server {number}");
        }
    }
    for bad in ["224.0.0.1", "255.255.255.255", "fd88::1"] {
        let spec = ServerSpec::default();
        let command = Command::AddServer { key: key(80), address: bad.parse().unwrap(), port: 80, spec };
        assert_eq!(bench.run(command), Err(ControlError::InvalidOperation), "{bad}");
    }
}

#[test]
fn a_removed_server_comes_back_with_its_connections_and_counters() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    let id = bench.id(1);
    bench.shared.slots.get(id).connection_added();
    bench.shared.counters(0).traffic.server(id).connection();
    bench.delete_server(80, 1).unwrap();
    assert!(!bench.shared.slots.get(id).is_available());
    assert_eq!(bench.state.services(None).unwrap()[0].servers.len(), 0);
    assert_eq!(bench.state.wanted().count(), 1, "its connections' packets may be wanted again");
    assert!(!bench.pass(600), "it has a connection");
    bench.add_server(80, 1, 3).unwrap();
    assert_eq!(bench.id(1), id);
    let rows = bench.state.services(None).unwrap();
    let row = &rows[0].servers[0];
    assert_eq!((row.inactive, row.counters.connections, row.spec.weight), (1, 1, 3));
    assert!(bench.shared.slots.get(id).is_available());
}

#[test]
fn an_idle_removed_server_is_forgotten_after_two_minutes() {
    let mut bench = Bench::new(1);
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    bench.shared.counters(0).traffic.server(bench.id(1)).connection();
    bench.delete_server(80, 1).unwrap();
    assert_eq!(bench.add_server(80, 2, 1), Err(ControlError::NoMemory), "its slot is still taken");
    bench.pass(119);
    assert_eq!(bench.state.wanted().count(), 1);
    assert!(bench.pass(2));
    assert_eq!(bench.state.wanted().count(), 0);
    bench.add_server(80, 2, 1).unwrap();
    assert_eq!(
        bench.state.services(None).unwrap()[0].servers[0].counters.connections,
        0,
        "the slot's former user's"
    );
}

#[test]
fn a_deleted_service_is_steered_here_as_long_as_it_has_connections() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    let steered =
        |bench: &Bench| bench.state.steered().into_iter().map(|(_, _, port)| port).collect::<Vec<_>>();
    let id = bench.id(1);
    bench.shared.slots.get(id).connection_added();
    bench.run(Command::Flush).unwrap();
    assert_eq!(steered(&bench), [80]);
    bench.shared.slots.get(id).connection_removed(false);
    assert!(bench.pass(1));
    assert!(steered(&bench).is_empty());
    assert!(bench.state.services(None).unwrap().is_empty());
    assert_eq!(bench.state.services(Some(&key(80))), Err(ControlError::NoSuchService));
}

#[test]
fn answers_are_steered_here_as_long_as_a_masqueraded_server_or_its_connections_live() {
    let mut bench = Bench::new(8);
    let spec = |method| ServerSpec { method, ..ServerSpec::default() };
    let (nat, direct) = (spec(ForwardingMethod::Masquerading), spec(ForwardingMethod::DirectRouting));
    let steered = |bench: &Bench| bench.state.steered_by_source().into_iter().collect::<Vec<_>>();
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    assert!(steered(&bench).is_empty(), "direct routing has no answers to translate");
    let add = |key, number, port, spec| Command::AddServer { key, address: server(number), port, spec };
    bench.run(add(key(80), 2, 8080, nat)).unwrap();
    let second = (Protocol::Tcp, server(2), 8080);
    assert_eq!(steered(&bench), [second]);
    let edit = |spec| Command::EditServer { key: key(80), address: server(1), port: 80, spec };
    let before = bench.state.version();
    bench.run(edit(nat)).unwrap();
    assert_ne!(bench.state.version(), before);
    bench.run(edit(direct)).unwrap();
    assert_eq!(steered(&bench), [(Protocol::Tcp, server(1), 80), second], "connections may be left");
    bench.delete_server(80, 1).unwrap();
    let id = bench.id(2);
    bench.shared.slots.get(id).connection_added();
    bench.run(Command::Flush).unwrap();
    assert_eq!(steered(&bench), [second]);
    bench.shared.slots.get(id).connection_removed(false);
    assert!(bench.pass(1));
    assert!(steered(&bench).is_empty());
}

#[test]
fn answers_of_services_of_many_ports_are_steered_here_from_every_port() {
    let spec = ServerSpec { method: ForwardingMethod::Masquerading, ..ServerSpec::default() };
    let persistent = ServiceSpec { persistence: Some(300), ..rr() };
    let mark = ServiceKey::Mark { mark: 1, family: Family::V4 };
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let rows: [(ServiceKey, ServiceSpec, &[Protocol]); 3] =
        [(key(0), rr(), &all[..1]), (key(21), persistent, &all[..1]), (mark, rr(), &all)];
    for (key, service, protocols) in rows {
        let mut bench = Bench::new(8);
        bench.run(Command::AddService { key, spec: service }).unwrap();
        bench.run(Command::AddServer { key, address: server(1), port: 21, spec }).unwrap();
        let expected = protocols.iter().map(|protocol| (*protocol, server(1), 0)).collect();
        assert_eq!(bench.state.steered_by_source(), expected, "{key:?}");
    }
}

#[test]
fn a_services_number_is_given_back_once() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    bench.add_server(80, 2, 1).unwrap();
    bench.run(Command::Flush).unwrap();
    bench.pass(1);
    bench.pass(200);
    let numbers: Vec<u32> = std::iter::from_fn(|| bench.state.service_ids.allocate()).collect();
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), distinct.len()), (crate::service::MAX_SERVICES, crate::service::MAX_SERVICES));
}

#[test]
fn an_edit_keeps_the_scheduler_where_it_is_unless_it_becomes_another() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    (1..=3).for_each(|number| bench.add_server(80, number, 1).unwrap());
    let choose = |bench: &Bench| {
        let flow = flow(bench, 0);
        let chooser = &bench.state.entry(&key(80)).unwrap().service.chooser;
        chooser.lock().choose(&bench.shared.slots, &flow).map(|server| server.address)
    };
    assert_eq!(choose(&bench), Some(server(3)));
    bench.run(Command::EditService { key: key(80), spec: rr() }).unwrap();
    assert_eq!(choose(&bench), Some(server(2)));
    let wrr = ServiceSpec { scheduler: "wrr".to_owned(), ..rr() };
    bench.run(Command::EditService { key: key(80), spec: wrr }).unwrap();
    assert_eq!(choose(&bench), Some(server(3)));
    assert_eq!(bench.state.services(None).unwrap()[0].spec.scheduler, "wrr");
}

#[test]
fn every_scheduler_can_be_asked_for_and_none_gets_nothing_new() {
    let mut bench = Bench::new(64);
    for (port, name) in (80..).zip(crate::scheduler::names()) {
        let spec = ServiceSpec { scheduler: name.to_owned(), ..rr() };
        bench.run(Command::AddService { key: key(port), spec }).unwrap();
        bench.add_server(port, 1, 1).unwrap();
        let flow = flow(&bench, 0);
        let chooser = &bench.state.entry(&key(port)).unwrap().service.chooser;
        let picked = chooser.lock().choose(&bench.shared.slots, &flow);
        assert_eq!(picked.is_some(), name != "none", "{name}");
    }
}

#[test]
fn how_long_destinations_are_remembered_is_a_setting_of_old_services_and_new_ones() {
    let mut bench = Bench::new(16);
    for (port, name) in [(80, "lblc"), (81, "lblcr"), (82, "lblc")] {
        if port == 82 {
            bench.state.set("lblc_expiration", "60").unwrap();
            bench.state.set("net.ipv4.vs.lblcr_expiration", "30").unwrap();
        }
        let spec = ServiceSpec { scheduler: name.to_owned(), ..rr() };
        bench.run(Command::AddService { key: key(port), spec }).unwrap();
        (1..=2).for_each(|number| bench.add_server(port, number, 9).unwrap());
    }
    for (port, seconds) in [(80, 60), (81, 30), (82, 60)] {
        let choose = |after| {
            let flow = flow(&bench, after);
            let chooser = &bench.state.entry(&key(port)).unwrap().service.chooser;
            let server = chooser.lock().choose(&bench.shared.slots, &flow).unwrap();
            bench.shared.slots.get(server.id).connection_added();
            server.address
        };
        assert_eq!(choose(0), server(2), "the last added");
        assert_eq!(choose(seconds - 1), server(2), "{port}: remembered");
        assert_eq!(choose(2 * seconds - 1), server(1), "{port}: forgotten, the other has less to do");
    }
}

#[test]
fn zero_hides_what_was_counted_and_starts_the_rates_over() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    bench.add_service(81).unwrap();
    for port in [80, 81] {
        let id = bench.state.entry(&key(port)).unwrap().service.id;
        (0..100).for_each(|_| bench.shared.counters(0).traffic.service(id).packet_in(60));
    }
    bench.pass(2);
    let seen = |bench: &Bench| {
        let rows = bench.state.services(None).unwrap();
        rows.iter().map(|row| (row.counters.in_packets, row.rates.in_packets)).collect::<Vec<_>>()
    };
    assert_eq!(seen(&bench), [(100, 12), (100, 12)]);
    bench.run(Command::Zero { service: Some(key(80)) }).unwrap();
    assert_eq!(seen(&bench), [(0, 0), (100, 12)]);
    bench.run(Command::Zero { service: None }).unwrap();
    assert_eq!(seen(&bench), [(0, 0), (0, 0)]);
}

#[test]
fn timeouts_of_zero_are_kept_and_settings_are_remembered() {
    let mut bench = Bench::new(8);
    bench.run(Command::SetTimeouts { tcp: 5, tcp_fin: 0, udp: 4 }).unwrap();
    assert_eq!(bench.state.timeouts(), listing::Timeouts { tcp: 5, tcp_fin: 120, udp: 4 });
    bench.state.set("expire_nodest_conn", "1").unwrap();
    assert_eq!(bench.state.get("net.ipv4.vs.expire_nodest_conn"), Ok(SettingValue::Number(1)));
    assert!(bench.state.set("drop_entry", "1").is_err());
    assert_eq!(bench.state.get("drop_entry"), Ok(SettingValue::Number(0)));
    bench.state.publish();
    assert!(bench.shared.configuration.load().settings.expire_nodest_conn);
}

/// A thousand edits a second must be possible, whatever else is configured: goes through what each of so many commands
/// costs, one by one, as separate programs would send them. Far from a benchmark: what grows with the square of the
/// configuration takes minutes here.
#[test]
fn commands_one_by_one_cost_little_however_much_is_configured() {
    const SERVICES: u16 = 1000;
    const SERVERS: u8 = 10;
    let mut bench = Bench::new(crate::service::MAX_REAL_SERVERS);
    let start = std::time::Instant::now();
    let mut step = start;
    let mut told = |what: &str| {
        eprintln!("{what}: {:?}", step.elapsed());
        step = std::time::Instant::now();
    };
    let follow = |bench: &mut Bench| {
        bench.state.publish();
        bench.state.version()
    };
    for port in 1..=SERVICES {
        bench.add_service(port).unwrap();
        follow(&mut bench);
    }
    told("services added");
    for port in 1..=SERVICES {
        for number in 1..=SERVERS {
            bench.add_server(port, number, 1).unwrap();
            follow(&mut bench);
        }
    }
    told("servers added");
    let before = bench.state.version();
    for port in 1..=SERVICES {
        for number in 1..=SERVERS {
            let spec = ServerSpec { weight: 7, ..ServerSpec::default() };
            let command = Command::EditServer { key: key(port), address: server(number), port, spec };
            bench.run(command).unwrap();
            follow(&mut bench);
        }
    }
    assert_eq!(bench.state.version(), before, "a weight moves nothing that is steered or routed");
    told("servers edited");
    for port in 1..=SERVICES {
        for number in 1..=SERVERS {
            bench.delete_server(port, number).unwrap();
            bench.add_server(port, number, 1).unwrap();
            follow(&mut bench);
        }
    }
    told("servers replaced");
    for port in 1..=SERVICES {
        bench.run(Command::EditService { key: key(port), spec: rr() }).unwrap();
        follow(&mut bench);
    }
    told("services edited");
    bench.run(Command::Flush).unwrap();
    bench.pass(1);
    bench.pass(200);
    told("flushed and forgotten");
    assert_eq!(bench.state.wanted().count(), 0);
    assert!(bench.state.service_uses.iter().all(|&uses| uses == 0));
    // 43,000 commands, some 200 ms of an unoptimized build.
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn connections_of_removed_servers_are_ended_where_a_setting_says_so() {
    use crate::conn::{Flags, FlowKey, NewConnection, WorkerView};
    let mut bench = Bench::new(8);
    bench.state.set("expire_nodest_conn", "1").unwrap();
    bench.add_service(80).unwrap();
    (1..=2).for_each(|number| bench.add_server(80, number, 1).unwrap());
    let (first, second) = (bench.id(1), bench.id(2));
    for (client, server) in [(1, first), (2, first), (3, second)] {
        let key = FlowKey::new([client], 6, 4000, 80);
        let new = NewConnection {
            server,
            address: [10, 0, 0, 1].into(),
            port: 80,
            method: ForwardingMethod::DirectRouting,
            flags: Flags::INACTIVE,
            state: crate::conn::State::NONE,
            deadline: Instant::ZERO + Duration::from_secs(900),
            control: None,
        };
        let (table, slots, epochs) = (&bench.shared.ipv4, &bench.shared.slots, &bench.shared.epochs);
        table.lock(table.hash(&key)).insert(&key, new, slots, &mut WorkerView::default(), epochs).unwrap();
    }
    bench.delete_server(80, 1).unwrap();
    (0..4).for_each(|_| _ = bench.pass(0));
    let counts = [first, second].map(|id| bench.shared.slots.get(id).connections());
    assert_eq!((counts, bench.shared.ipv4.alive()), ([0, 1], 1));
}

fn persistent(seconds: u32) -> ServiceSpec {
    ServiceSpec { persistence: Some(seconds), ..rr() }
}

/// Makes a template, of any key, that leads to a server.
fn make_template(bench: &Bench, addresses: u64, protocol: u8, port: u16, server: ServerId) {
    use crate::conn::FlowKey;
    use crate::persistence::NewTemplate;
    let key = FlowKey::new([addresses], protocol, 0, port);
    let new = NewTemplate { server, port, timeout: Duration::from_secs(90) };
    let mut shard = bench.shared.ipv4.templates().lock(&key);
    shard.insert(&key, new, &bench.shared.slots, bench.now).unwrap();
}

#[test]
fn persistence_is_taken_over_in_place() {
    let mut bench = Bench::new(8);
    bench.run(Command::AddService { key: key(80), spec: persistent(300) }).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    let served = |bench: &mut Bench| {
        bench.state.publish();
        let configuration = bench.shared.configuration.load();
        let service = Arc::clone(configuration.services.get(&key(80)).unwrap());
        (service.id, service.persistence.map(|persistence| persistence.timeout.as_secs()), service)
    };
    let (id, timeout, before) = served(&mut bench);
    assert_eq!(timeout, Some(300));
    bench.run(Command::EditService { key: key(80), spec: persistent(100) }).unwrap();
    let (same, timeout, after) = served(&mut bench);
    assert_eq!((same, timeout), (id, Some(100)));
    assert!(Arc::ptr_eq(&before.chooser, &after.chooser), "its servers and its scheduler's turn");
    let mask = ServiceSpec { netmask: Netmask::V4([255, 255, 0, 0].into()), ..persistent(100) };
    bench.run(Command::EditService { key: key(80), spec: mask }).unwrap();
    assert_ne!(served(&mut bench).2.persistence, after.persistence);
    bench.run(Command::EditService { key: key(80), spec: rr() }).unwrap();
    assert_eq!(served(&mut bench).1, None);
    assert_eq!(bench.state.services(None).unwrap()[0].servers.len(), 1);
    let one_packet = ServiceSpec { one_packet: true, ..rr() };
    for (spec, expected) in [(one_packet, true), (rr(), false)] {
        bench.run(Command::EditService { key: key(80), spec }).unwrap();
        let (same, _, service) = served(&mut bench);
        assert_eq!((same, service.one_packet), (id, expected));
        assert!(Arc::ptr_eq(&before.chooser, &service.chooser));
    }
}

#[test]
fn persistent_ftp_is_steered_here_with_all_ports() {
    let mut bench = Bench::new(8);
    bench.run(Command::AddService { key: key(21), spec: rr() }).unwrap();
    let steered =
        |bench: &Bench| bench.state.steered().into_iter().map(|(_, _, port)| port).collect::<Vec<_>>();
    assert_eq!(steered(&bench), [21]);
    let before = bench.state.version();
    bench.run(Command::EditService { key: key(21), spec: persistent(300) }).unwrap();
    assert_eq!(steered(&bench), [0]);
    assert_ne!(bench.state.version(), before, "the steering has to hear of it");
    bench.add_server(21, 1, 1).unwrap();
    bench.shared.slots.get(bench.id(1)).connection_added();
    bench.run(Command::EditService { key: key(21), spec: rr() }).unwrap();
    assert_eq!(steered(&bench), [0], "data connections may be left");
    bench.run(Command::Flush).unwrap();
    assert_eq!(steered(&bench), [0]);
    bench.shared.slots.get(ServerId(0)).connection_removed(false);
    bench.pass(1);
    assert!(steered(&bench).is_empty());
}

#[test]
fn templates_are_listed_as_the_kernel_lists_them() {
    use crate::control::listing::{Labels, connection_row};
    let mut bench = Bench::new(8);
    bench.run(Command::AddService { key: key(80), spec: persistent(90) }).unwrap();
    bench.add_server(80, 1, 1).unwrap();
    let client = 0x0a58_8001_u64 << 32;
    make_template(&bench, client | 0x0a58_0064, 6, 80, bench.id(1));
    make_template(&bench, client | 7, 0, 0, bench.id(1));
    let listed = |bench: &Bench| {
        let mut walk = bench.state.connections();
        let mut lines = Vec::new();
        while let Some(rows) = walk.next_chunk(bench.now) {
            lines.extend(rows.iter().map(|row| connection_row(row, false, &Labels::numeric())));
        }
        lines.sort();
        lines
    };
    let expected = [
        "IP  01:30  NONE        10.88.128.1:0      0.0.0.7:0          10.88.2.1:0\n",
        "TCP 01:30  NONE        10.88.128.1:0      10.88.0.100:80     10.88.2.1:80\n",
    ];
    assert_eq!(listed(&bench), expected);
    assert_eq!(bench.state.services(None).unwrap()[0].servers[0].persistent, 2);
    let flow = crate::conn::FlowKey::new([client | 0x0a58_0064], 6, 0, 80);
    let mut shard = bench.shared.ipv4.templates().lock(&flow);
    let found = shard.find(&flow, &bench.shared.slots, bench.now).unwrap();
    shard.invalidate(found.id);
    drop(shard);
    let invalid = "TCP 01:30  NONE        10.88.128.1:0      10.88.0.100:65535  10.88.2.1:65535\n";
    assert_eq!(listed(&bench), [expected[0], invalid]);
}

#[test]
fn templates_keep_a_removed_server_unless_a_setting_ends_them() {
    for (expire, waits) in [("0", true), ("1", false)] {
        let mut bench = Bench::new(8);
        bench.state.set("expire_nodest_conn", expire).unwrap();
        bench.run(Command::AddService { key: key(80), spec: persistent(90) }).unwrap();
        bench.add_server(80, 1, 1).unwrap();
        let id = bench.id(1);
        make_template(&bench, 1, 6, 80, id);
        bench.delete_server(80, 1).unwrap();
        (0..6).for_each(|_| _ = bench.pass(0));
        assert_eq!(bench.shared.slots.get(id).persistent() == 1, waits);
        bench.pass(200);
        assert_eq!(bench.state.wanted().count() == 1, waits, "in the trash");
    }
}

#[test]
fn quiescent_templates_expire_where_a_setting_says_so() {
    let mut bench = Bench::new(8);
    assert_eq!(bench.state.get("expire_quiescent_template"), Ok(SettingValue::Number(0)));
    bench.state.set("expire_quiescent_template", "1").unwrap();
    bench.state.publish();
    assert!(bench.shared.configuration.load().settings.expire_quiescent_template);
}

#[test]
fn a_suspended_machine_does_not_make_up_for_the_estimates_it_missed() {
    let mut bench = Bench::new(8);
    bench.add_service(80).unwrap();
    let start = std::time::Instant::now();
    bench.pass(10 * 365 * 86_400);
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
    assert!(bench.state.next_deadline() <= bench.now + ESTIMATION_PERIOD);
    assert!(bench.state.next_deadline() > bench.now);
}
