//! Rules as commands change them, and what they have steered here.

use super::*;
use crate::control::command::Command;
use crate::control::grammar::rules;
use crate::control::names::tests::FixedNames;
use crate::director::{Capacity, Shared};
use crate::service::marks::MarkTarget;
use crate::types::{HashKey, Instant};

struct Bench {
    state: State,
}

impl Bench {
    fn new() -> Self {
        let capacity = Capacity { connections: 16, servers: 8, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]); 2]).unwrap();
        Self { state: State::new(shared, Instant::ZERO) }
    }

    fn run(&mut self, text: &str) -> Vec<Result<(), ControlError>> {
        let names = FixedNames::new(&[]);
        let commands: Vec<Command> = rules(text, &names).map(|rule| rule.command.unwrap()).collect();
        commands.iter().map(|command| self.state.execute(command, Instant::ZERO)).collect()
    }

    fn done(&mut self, text: &str) {
        for result in self.run(text) {
            result.unwrap();
        }
    }

    /// What is steered, in words.
    fn steered(&self) -> Vec<String> {
        let MarkSteering { ports, networks } = self.state.steered_by_marks();
        let ports = ports.iter().map(|(protocol, address, port)| format!("{protocol} {address} {port}"));
        let networks = networks.iter().map(|(prefix, protocol)| format!("{protocol} {prefix}"));
        ports.chain(networks).collect()
    }
}

#[test]
fn few_ports_are_steered_one_by_one_and_all_else_by_address() {
    let all = ["TCP 10.0.0.1 0", "UDP 10.0.0.1 0", "SCTP 10.0.0.1 0"];
    for (words, expected) in [
        ("-d 10.0.0.1 -p tcp --dport 80 -j MARK --set-mark 1", &["TCP 10.0.0.1 80"][..]),
        ("-d 10.0.0.1 -p udp --dport 80:81 -j MARK --set-mark 1", &["UDP 10.0.0.1 80", "UDP 10.0.0.1 81"]),
        (
            "-d 10.0.0.1 -p tcp -m tcp -m multiport --dports 80,443 -j MARK --set-mark 1",
            &["TCP 10.0.0.1 80", "TCP 10.0.0.1 443"],
        ),
        ("-d 10.0.0.1 -p tcp --dport 1:65 -j MARK --set-mark 1", &["TCP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -p tcp --dport 0 -j MARK --set-mark 1", &["TCP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -p tcp ! --dport 80 -j MARK --set-mark 1", &["TCP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -p tcp --sport 80 -j MARK --set-mark 1", &["TCP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -p tcp -m multiport --ports 80 -j MARK --set-mark 1", &["TCP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -j MARK --set-mark 1", &all),
        ("-d 10.0.0.1 ! -p udp -j MARK --set-mark 1", &["TCP 10.0.0.1 0", "SCTP 10.0.0.1 0"]),
        ("-d 10.0.0.1 -p gre -j MARK --set-mark 1", &[]),
        ("-d 10.0.0.1 -p tcp -j ACCEPT", &[]),
        ("-d 10.0.0.9/24 -p tcp --dport 80 -j MARK --set-mark 1", &["TCP 10.0.0.0/24"]),
        ("-d 10.0.0.0/255.0.255.0 -p tcp -j MARK --set-mark 1", &["TCP 10.0.0.0/8"]),
        ("! -d 10.0.0.1 -p tcp -j MARK --set-mark 1", &["TCP 0.0.0.0/0"]),
        ("-p tcp --dport 80 -j MARK --set-mark 1", &["TCP 0.0.0.0/0"]),
        ("-6 -p udp -j MARK --set-mark 1", &["UDP ::/0"]),
        ("-d fd88::1 -p tcp --dport 80 -j MARK --set-mark 1", &["TCP fd88::1 80"]),
    ] {
        let mut bench = Bench::new();
        bench.done(&format!("mark -A PREROUTING {words}"));
        assert!(bench.steered().is_empty(), "nothing, as long as there is no service by mark");
        bench.done("-A -f 7");
        let mut expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        let mut steered = bench.steered();
        expected.sort();
        steered.sort();
        assert_eq!(steered, expected, "{words}");
        bench.done("-D -f 7");
        assert!(bench.steered().is_empty(), "nor when it is gone");
    }
}

#[test]
fn rules_that_are_gone_are_steered_until_no_connection_can_need_it() {
    let mut bench = Bench::new();
    bench.done(
        "-A -f 1\n-a -f 1 -r 10.0.2.1\nmark -A PREROUTING -d 10.0.0.1 -p tcp --dport 80 -j MARK --set-mark 1",
    );
    let id = bench.state.wanted().next().unwrap().0;
    let shared = Arc::clone(&bench.state.shared);
    shared.slots.get(id).connection_added();
    bench.done("mark -F\nmark -A PREROUTING -d 10.0.0.2 -p tcp --dport 80 -j MARK --set-mark 1");
    bench.state.tick(Instant::ZERO);
    assert_eq!(bench.steered(), ["TCP 10.0.0.1 80", "TCP 10.0.0.2 80"]);
    bench.done("-D -f 1");
    bench.state.tick(Instant::ZERO);
    assert_eq!(bench.steered(), ["TCP 10.0.0.1 80", "TCP 10.0.0.2 80"], "its connections live");
    let version = bench.state.version();
    shared.slots.get(id).connection_removed(false);
    assert!(bench.state.tick(Instant::ZERO), "somebody has to look again");
    assert_ne!(bench.state.version(), version);
    assert!(bench.steered().is_empty());
    bench.done("-A -f 1");
    assert_eq!(bench.steered(), ["TCP 10.0.0.2 80"]);
}

#[test]
fn refused_commands_change_nothing() {
    let mut bench = Bench::new();
    bench.done("mark -A PREROUTING -p tcp -j ACCEPT\nmark -6 -A PREROUTING -p udp -j ACCEPT");
    let before = bench.state.all_mark_rows();
    let place = |what: &str| Err(ControlError::MarkPlace(what.to_owned()));
    assert_eq!(
        bench.run(
            "mark -D PREROUTING -p udp -j ACCEPT\nmark -D PREROUTING 2\nmark -I PREROUTING 3 -j ACCEPT\n\
             mark -R PREROUTING 2 -j ACCEPT\nmark -C PREROUTING -j ACCEPT\nmark -D PREROUTING -s 0.0.0.0,1.1.1.1 -j ACCEPT"
        ),
        [
            Err(ControlError::NoMarkRule),
            place("deletion"),
            place("insertion"),
            place("replacement"),
            Err(ControlError::NoMarkRule),
            Err(ControlError::NoMarkRule)
        ]
    );
    let mixed = vec![MarkRule::any(Family::V4), MarkRule::any(Family::V6)];
    let command = Command::Mark(MarkCommand::Append { rules: mixed });
    assert!(matches!(bench.state.execute(&command, Instant::ZERO), Err(ControlError::Refused(_))));
    assert_eq!(bench.state.all_mark_rows(), before);
}

#[test]
fn there_are_no_more_rules_than_there_is_room_for() {
    let mut bench = Bench::new();
    let rule = MarkRule { target: Some(MarkTarget::Return), ..MarkRule::any(Family::V6) };
    let append = |count| Command::Mark(MarkCommand::Append { rules: vec![rule.clone(); count] });
    for _ in 0..MAX_MARK_RULES / MAX_RULES_AT_ONCE {
        bench.state.execute(&append(MAX_RULES_AT_ONCE), Instant::ZERO).unwrap();
    }
    let full = Err(ControlError::TooManyMarkRules);
    assert_eq!(bench.state.execute(&append(1), Instant::ZERO), full);
    let insert = Command::Mark(MarkCommand::Insert { place: 1, rules: vec![rule.clone()] });
    assert_eq!(bench.state.execute(&insert, Instant::ZERO), full);
    let too_many = Command::Mark(MarkCommand::Append { rules: vec![rule.clone(); MAX_RULES_AT_ONCE + 1] });
    assert!(matches!(bench.state.execute(&too_many, Instant::ZERO), Err(ControlError::Refused(_))));
    assert_eq!(bench.state.all_mark_rows().len(), MAX_MARK_RULES);
    let other = Command::Mark(MarkCommand::Append { rules: vec![MarkRule::any(Family::V4)] });
    assert_eq!(bench.state.execute(&other, Instant::ZERO), Ok(()), "the other family has room of its own");
}

#[test]
fn services_by_mark_take_ipvsadms_commands() {
    let mut bench = Bench::new();
    bench.done("-A -f 10 -s rr\n-A -f 10 -6\n-a -f 10 -r 10.0.2.1 -g -w 3\n-E -f 10 -s wrr\n-e -f 10 -r 10.0.2.1 -w 2");
    let rows = bench.state.services(None).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].spec.scheduler.as_str(), rows[0].servers[0].spec.weight), ("wrr", 2));
    assert_eq!(rows[0].servers[0].port, 0);
    assert_eq!(bench.run("-A -f 10"), [Err(ControlError::ServiceExists)]);
}
