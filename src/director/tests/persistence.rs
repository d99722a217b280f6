//! Persistent services: where clients go, and for how long.

use super::*;
use crate::conn::WorkerView;
use crate::persistence::{ClientMask, Persistence, Walked};

const MASK: ClientMask = ClientMask::ALL;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Lab {
    /// All services become persistent.
    fn persistent(servers: u32, timeout: u64, mask: ClientMask) -> Self {
        let mut lab = Self::new(servers);
        lab.set_persistence(Some(Persistence { timeout: seconds(timeout), mask }));
        lab
    }

    fn set_persistence(&mut self, persistence: Option<Persistence>) {
        for service in &mut self.services {
            let Service { id, key, ref chooser, one_packet, .. } = **service;
            let chooser = Arc::clone(chooser);
            *service = Arc::new(Service { id, key, chooser, persistence, one_packet });
        }
        self.publish();
    }

    /// Another service of TCP, over the servers of the first.
    fn add_service(&mut self, port: u16) {
        let Service { ref chooser, persistence, .. } = *self.services[0];
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port };
        let chooser = Arc::clone(chooser);
        let service = Service { id: ServiceId(9), key, chooser, persistence, one_packet: false };
        self.services.push(Arc::new(service));
        self.publish();
    }

    /// The number of the server that a packet goes to.
    fn goes(&mut self, frame: Vec<u8>) -> u32 {
        let sent = self.one(frame);
        assert_eq!(sent.verdict, Verdict::Transmit(INSIDE));
        u32::from(sent.frame[5]) - 10
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        self.tick();
    }

    fn templates(&self) -> Vec<Walked> {
        let mut all = Vec::new();
        self.shared().ipv4.templates().visit(0, u32::MAX, self.now, |walked| all.push(walked));
        all
    }

    fn left(&self) -> Vec<u64> {
        self.templates().iter().map(|template| template.remaining.as_secs()).collect()
    }

    fn persistent_counts(&self) -> Vec<u32> {
        (1..=3).map(|server| self.shared().slots.get(ServerId(server)).persistent()).collect()
    }

    fn set_weight(&self, server: u32, weight: u32) {
        self.shared().slots.get(ServerId(server)).set_weight(weight);
    }

    fn remove(&self, server: u32) {
        self.services[0].chooser.lock().remove(&self.shared().slots, ServerId(server));
        self.shared().slots.get(ServerId(server)).set_available(false);
    }
}

/// A SYN of client 10.88.128.`client`.
fn syn(client: u8, source: u16, port: u16) -> Vec<u8> {
    Build::ipv4([10, 88, 128, client], VIP)
        .source_mac(ROUTER)
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(segment(source, port, SYN))
        .frame()
}

#[test]
fn a_client_stays_and_others_take_turns() {
    let mut lab = Lab::persistent(3, 50, MASK);
    let first: Vec<u32> = (1..=4).map(|client| lab.goes(syn(client, 4000, 80))).collect();
    assert_eq!(first, [3, 2, 1, 3]);
    for port in 4001..4010 {
        let again: Vec<u32> = (1..=4).map(|client| lab.goes(syn(client, port, 80))).collect();
        assert_eq!(again, first);
    }
    assert_eq!(lab.persistent_counts(), [1, 1, 2]);
    assert_eq!(lab.counts(3), (20, 0), "templates are no connections");
    let template = lab.templates()[0];
    assert_eq!((template.protocol, template.service, template.server_port), (6, (VIP.into(), 80), 80));
    assert_eq!((template.remaining, template.assured), (seconds(50), false));
}

#[test]
fn a_netmask_makes_one_client_of_many() {
    let mut lab = Lab::persistent(3, 50, ClientMask::ipv4([255, 255, 255, 254].into()));
    let goes: Vec<u32> = (0..6).map(|client| lab.goes(syn(client, 4000, 80))).collect();
    assert_eq!(goes, [3, 3, 2, 2, 1, 1]);
    // IPv6, by prefix: another interface identifier, then another network.
    let mut lab = Lab::persistent(3, 50, ClientMask::ipv6(64));
    let to = |byte: usize, value: u8| {
        let mut client = CLIENT6;
        client[byte] = value;
        Build::ipv6(client, VIP6)
            .source_mac(ROUTER)
            .destination_mac(DIRECTOR_OUTSIDE)
            .transport(segment(4000, 80, SYN))
            .frame()
    };
    let goes = [to(15, 1), to(15, 2), to(8, 9), to(7, 9), to(7, 8)].map(|frame| lab.goes(frame));
    assert_eq!(goes, [3, 3, 3, 2, 1]);
}

#[test]
fn ftp_takes_its_data_along() {
    let mut lab = Lab::persistent(3, 50, MASK);
    lab.add_service(21);
    let control = [1, 2].map(|client| lab.goes(syn(client, 4000, 21)));
    assert_eq!(control, [3, 2]);
    assert_eq!([1, 2].map(|client| lab.goes(syn(client, 4001, 33_333))), control);
    assert_eq!(lab.goes(syn(1, 4001, 20)), 3);
    assert_eq!(lab.one(syn(1, 4002, 1023)).verdict, Verdict::ToHost, "no port of FTP's");
    assert_eq!(lab.one(syn(1, 20, 33_334)).verdict, Verdict::ToHost, "active data is never scheduled");
    let templates = lab.templates();
    assert_eq!(templates.len(), 2);
    assert!(templates.iter().all(|template| (template.service.1, template.server_port) == (0, 0)));
    // Without a server: what may be data is the host's, as it may be no FTP at all.
    (1..=3).for_each(|server| lab.set_weight(server, 0));
    assert_eq!(lab.one(syn(9, 4000, 33_333)).verdict, Verdict::ToHost);
    assert_eq!(lab.one(syn(9, 4000, 21)).verdict, Verdict::Reply(OUTSIDE), "unreachable");
    assert_eq!(lab.goes(syn(1, 4005, 33_333)), 3, "known clients stay with a quiescent server");
}

#[test]
fn a_service_of_port_0_takes_all_ports() {
    let mut lab = Lab::persistent(3, 50, MASK);
    lab.add_service(0);
    assert_eq!([1_u16, 22, 443, 8080, 65_535].map(|port| lab.goes(syn(1, 4000, port))), [3; 5]);
    assert_eq!(lab.goes(syn(2, 4000, 443)), 2);
    assert_eq!(lab.goes(syn(2, 4000, 80)), 1, "port 80 has a service and a template of its own");
    assert_eq!(lab.templates().len(), 3);
}

#[test]
fn each_use_starts_the_time_anew() {
    let mut lab = Lab::persistent(3, 100, MASK);
    assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
    lab.pass(seconds(70));
    assert_eq!(lab.shared().ipv4.alive(), 0, "a half-open connection lives for a minute");
    assert_eq!(lab.left(), [30]);
    assert_eq!(lab.goes(syn(1, 4001, 80)), 3);
    assert_eq!(lab.left(), [100]);
    lab.pass(Duration::from_millis(99_999));
    assert_eq!(lab.left(), [0]);
    lab.now += Duration::from_millis(1);
    assert_eq!(lab.templates(), [], "over, though nobody has collected it");
    assert_eq!(lab.goes(syn(1, 4002, 80)), 2);
    assert_eq!(lab.persistent_counts(), [0, 1, 0]);
    lab.pass(seconds(101));
    assert_eq!((lab.persistent_counts(), lab.shared().ipv4.templates().alive()), (vec![0; 3], 0));
}

/// What is put off while there are connections lives for a minute at a time, from then on also after each use, whatever
/// the service says meanwhile.
#[test]
fn connections_keep_their_template() {
    let mut lab = Lab::persistent(3, 100, MASK);
    assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
    lab.one(tcp(4000, ACK));
    assert!(lab.templates()[0].assured);
    lab.pass(seconds(99));
    assert_eq!(lab.left(), [1]);
    lab.pass(seconds(11));
    assert_eq!(lab.left(), [50]);
    lab.pass(seconds(55));
    assert_eq!(lab.left(), [55]);
    assert_eq!(lab.goes(syn(1, 4001, 80)), 3);
    assert_eq!(lab.left(), [60]);
    lab.set_persistence(Some(Persistence { timeout: seconds(3000), mask: MASK }));
    assert_eq!(lab.goes(syn(1, 4002, 80)), 3);
    assert_eq!(lab.left(), [60]);
    assert_eq!(lab.goes(syn(2, 4000, 80)), 2);
    assert_eq!(lab.templates().iter().map(|template| template.remaining.as_secs()).max(), Some(3000));
    // The established one ends 900 s after its last packet; the template a minute or less after that.
    lab.pass(seconds(736));
    assert_eq!(lab.shared().ipv4.alive(), 0);
    lab.pass(seconds(61));
    assert_eq!(lab.templates().len(), 1, "the other client's");
    assert_eq!(lab.goes(syn(1, 4003, 80)), 1);
}

/// A connection and its template of one length of life end together: neither keeps the other.
#[test]
fn a_template_that_is_over_with_its_connection_ends() {
    let mut lab = Lab::persistent(3, 60, MASK);
    for client in 1..100 {
        lab.goes(syn(client, 4000, 80));
        lab.now += Duration::from_millis(7);
    }
    lab.pass(Duration::from_millis(60_040));
    assert_eq!((lab.shared().ipv4.alive(), lab.shared().ipv4.templates().alive()), (0, 0));
}

/// A worker that sleeps until something is due finds everything in time.
#[test]
fn a_sleeping_worker_is_told_of_templates() {
    let mut lab = Lab::persistent(3, 3, MASK);
    lab.goes(syn(1, 4000, 80));
    lab.one(tcp(4000, ACK));
    let start = lab.now;
    let mut moments = Vec::new();
    while lab.shared().ipv4.templates().alive() > 0 {
        lab.now = lab.director.next_deadline().expect("something is left");
        lab.tick();
        moments.push(lab.now.since(start).as_secs());
        assert!(moments.len() < 100, "{moments:?}");
    }
    // At 3 s and every minute after; the connection lasts for 900.
    assert_eq!(*moments.last().unwrap(), 903);
    assert_eq!(lab.shared().ipv4.alive(), 0);
}

#[test]
fn removed_and_quiescent_servers_lose_their_clients_as_settings_say() {
    let mut lab = Lab::persistent(3, 50, MASK);
    assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
    lab.set_weight(3, 0);
    assert_eq!(lab.goes(syn(1, 4001, 80)), 3, "by default they stay");
    lab.settings.expire_quiescent_template = true;
    lab.publish();
    assert_eq!(lab.goes(syn(1, 4002, 80)), 2);
    let ports = |lab: &Lab| {
        let mut ports: Vec<(u16, u16)> =
            lab.templates().iter().map(|template| (template.service.1, template.server_port)).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(&lab), [(80, 80), (65_535, 65_535)]);
    assert_eq!(lab.persistent_counts(), [0, 1, 1], "the invalid one waits for its end");
    lab.settings.expire_quiescent_template = false;
    lab.set_weight(3, 1);
    lab.publish();
    assert_eq!(lab.goes(syn(1, 4003, 80)), 2, "what was found invalid does not come back");
    lab.remove(2);
    assert_eq!(lab.goes(syn(1, 4004, 80)), 1);
    assert_eq!(ports(&lab), [(80, 80), (65_535, 65_535), (65_535, 65_535)]);
    // No server, no template; the client's old one is found invalid even so.
    lab.remove(1);
    lab.set_weight(3, 0);
    assert_eq!(lab.one(syn(1, 4005, 80)).verdict, Verdict::Reply(OUTSIDE));
    assert_eq!(ports(&lab), [(65_535, 65_535); 3]);
    lab.pass(seconds(130));
    assert_eq!(lab.templates(), []);
}

#[test]
fn overloaded_servers_keep_their_clients() {
    let mut lab = Lab::persistent(2, 50, MASK);
    lab.shared().slots.get(ServerId(2)).set_thresholds(1, 0);
    assert_eq!(lab.goes(syn(1, 4000, 80)), 2);
    assert!(lab.shared().slots.get(ServerId(2)).is_overloaded());
    assert_eq!([2, 3].map(|client| lab.goes(syn(client, 4000, 80))), [1, 1]);
    assert_eq!(lab.goes(syn(1, 4001, 80)), 2);
}

/// `is_new_conn_expected`: what a template controls is not reused, whatever its state.
#[test]
fn a_new_connection_on_old_ports_stays_the_old_one() {
    let mut lab = Lab::persistent(3, 50, MASK);
    assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
    lab.one(tcp(4000, ACK));
    lab.one(tcp(4000, RST));
    assert_eq!(lab.states(), [(4000, State::CLOSE)]);
    lab.remove(3);
    assert_eq!(lab.one(tcp(4000, SYN)).verdict, Verdict::Drop(DropReason::RealServerGone));
    let mut lab = Lab::persistent(3, 50, MASK);
    lab.goes(syn(1, 4000, 80));
    lab.one(tcp(4000, ACK));
    lab.one(tcp(4000, RST));
    assert_eq!(lab.goes(tcp(4000, SYN)), 3);
    let traffic = lab.shared().server_traffic(ServerId(3));
    assert_eq!((traffic.connections, traffic.in_packets), (1, 4));
}

#[test]
fn templates_are_assured_by_connections_that_get_somewhere() {
    let assured = |lab: &Lab| lab.templates().iter().map(|template| template.assured).collect::<Vec<_>>();
    let mut lab = Lab::persistent(1, 50, MASK);
    lab.goes(syn(1, 4000, 80));
    lab.one(tcp(4000, FIN | ACK));
    assert_eq!(assured(&lab), [false], "it was never established");
    lab.goes(syn(1, 4001, 80));
    lab.one(tcp(4001, ACK));
    assert_eq!(assured(&lab), [true]);
    // Established at once.
    let mut lab = Lab::persistent(1, 50, MASK);
    lab.settings.sloppy_tcp = true;
    lab.publish();
    lab.one(tcp(4000, ACK));
    assert_eq!(assured(&lab), [true]);
    // UDP by an answer, which direct routing does not show.
    let mut lab = Lab::persistent(1, 50, MASK);
    (0..3).for_each(|_| drop(lab.one(udp(4000))));
    assert_eq!(assured(&lab), [false]);
    let sctp = |chunk| {
        let transport = Transport::Sctp { source: 9, destination: 2905, tag: 0, chunk, chunk_payload: 16 };
        build().transport(transport).payload(&[0; 16]).frame()
    };
    let mut lab = Lab::persistent(1, 50, MASK);
    // INIT, COOKIE ECHO.
    [1, 10].into_iter().for_each(|chunk| drop(lab.one(sctp(chunk))));
    let state = |lab: &Lab| lab.states()[0].1;
    if state(&lab) != State::SCTP_ESTABLISHED {
        // INIT again, INIT ACK seen from the client, COOKIE ACK.
        [2, 11].into_iter().for_each(|chunk| drop(lab.one(sctp(chunk))));
    }
    assert_eq!((state(&lab), assured(&lab)), (State::SCTP_ESTABLISHED, vec![true]));
}

/// Each way in which a connection ends counts it off: the template ends in its time.
#[test]
fn whatever_ends_a_connection_its_template_knows() {
    type End = (&'static str, fn(&mut Lab));
    let ends: [End; 4] = [
        ("its timer", |lab| lab.pass(seconds(61))),
        ("its server's removal", |lab| {
            lab.remove(3);
            let mut views: [WorkerView; 2] = Default::default();
            let mut walk = Some(Walk::default());
            while let Some(next) = walk {
                walk = lab.shared().end_orphans(next, &mut views, lab.now);
            }
        }),
        ("a new one on its ports", |lab| {
            lab.settings.expire_nodest_conn = true;
            lab.set_weight(3, 0);
            lab.publish();
            // Ended, and made anew under the same template; which ends by its timer.
            assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
            lab.pass(seconds(61));
        }),
        ("another's need for room", |lab| {
            lab.director.shared().ipv4.templates();
            let (table, shared) = (&lab.director.shared().ipv4, lab.shared());
            let mut view = WorkerView::default();
            for random in 0..1000_u64 {
                let random = random << 54;
                table.evict(random, &shared.slots, &mut view, &shared.epochs, |_, _| true);
            }
        }),
    ];
    for (what, end) in ends {
        let mut lab = Lab::persistent(3, 1000, MASK);
        assert_eq!(lab.goes(syn(1, 4000, 80)), 3);
        end(&mut lab);
        assert_eq!(lab.shared().ipv4.alive(), 0, "{what}");
        let ended_early = ["its server's removal", "another's need for room"].contains(&what);
        assert_eq!(lab.templates().is_empty(), ended_early, "{what}");
        lab.pass(seconds(1001));
        assert_eq!(lab.shared().ipv4.templates().alive(), 0, "{what}: it is put off for nothing");
        assert_eq!(lab.persistent_counts(), [0; 3], "{what}");
    }
}

#[test]
fn full_tables_refuse_with_a_reason_of_their_own() {
    let mut lab = Lab::with_capacity(3, 16);
    lab.set_persistence(Some(Persistence { timeout: seconds(5000), mask: MASK }));
    // More clients than templates fit, all of which get somewhere; their connections end.
    for client in 0..16 {
        lab.goes(syn(client, 4000, 80));
        let ack =
            Build::ipv4([10, 88, 128, client], VIP).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE);
        lab.one(ack.transport(segment(4000, 80, ACK)).frame());
    }
    assert_eq!((lab.shared().ipv4.templates().alive(), lab.shared().ipv4.alive()), (16, 16));
    let verdict = lab.one(syn(1, 4001, 80)).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::ConnectionTableFull), "its template counts it no more");
    lab.pass(seconds(901));
    assert_eq!((lab.shared().ipv4.templates().alive(), lab.shared().ipv4.alive()), (16, 0));
    assert_eq!(lab.one(syn(100, 4000, 80)).verdict, Verdict::Drop(DropReason::TemplateTableFull));
    assert_eq!(lab.shared().ipv4.alive(), 0);
    assert_eq!(lab.goes(syn(1, 4001, 80)), 2, "a known client is served");
    lab.pass(seconds(5000));
    assert_eq!(lab.shared().ipv4.templates().alive(), 0);
    assert_eq!(lab.persistent_counts(), [0; 3]);
}

/// Two workers meet the same new clients, again and again.
#[test]
fn workers_agree_on_every_clients_server() {
    const CLIENTS: u16 = 2000;
    let lab = Lab::persistent(3, 50, MASK);
    let shared = Arc::clone(lab.director.shared());
    let capacity = Capacity { connections: 1 << 14, servers: 64, workers: 2 };
    let both = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
    for server in 1..=3 {
        let slot = both.slots.get(ServerId(server));
        slot.set_method(ForwardingMethod::DirectRouting, Tunnel::IPIP);
        slot.set_weight(1);
        slot.set_available(true);
    }
    both.configuration.store(shared.configuration.load_full());
    both.network.store(shared.network.load_full());
    let start = std::sync::Barrier::new(2);
    let went: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let run = |worker: usize| {
            let (both, start) = (Arc::clone(&both), &start);
            scope.spawn(move || {
                let mut director = Director::new(both, worker);
                let mut frames = FramePool::new(128, 4096).unwrap();
                let mut batch = Batch::new();
                let mut went = Vec::new();
                start.wait();
                for client in 0..CLIENTS {
                    let [high, low] = client.to_be_bytes();
                    let frame = Build::ipv4([10, 9, high, low], VIP)
                        .source_mac(ROUTER)
                        .destination_mac(DIRECTOR_OUTSIDE)
                        .transport(segment(4000 + worker as u16, 80, SYN))
                        .frame();
                    let frame = frames.allocate_copy(&frame).unwrap();
                    batch.push(frame, OUTSIDE, Offload::default()).unwrap();
                    director.process(&mut batch, &frames, Instant::ZERO + seconds(1));
                    assert_eq!(batch.entries()[0].verdict, Verdict::Transmit(INSIDE));
                    went.push(frames.bytes(&batch.entries()[0].frame)[5] - 10);
                    batch.clear(&mut frames);
                }
                went
            })
        };
        let threads = [run(0), run(1)];
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert_eq!(went[0], went[1]);
    assert_eq!(both.ipv4.templates().alive(), u64::from(CLIENTS));
}
