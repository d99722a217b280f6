//! What is not iptables' own to say, or said better here; the rest is compared with recordings of iptables.

use std::net::IpAddr;

use super::command::{MarkCommand, MarkRow};
use super::*;
use crate::control::names::tests::FixedNames;
use crate::service::marks::{AddressMatch, MarkRule, MarkTarget, PortMatch, PortRange, ProtocolMatch};
use crate::types::Family;

fn names() -> FixedNames {
    FixedNames::new(&[("vip", "10.88.0.100"), ("vip6", "fd88::100"), ("b", "10.88.0.101")])
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn read(line: &str) -> Result<MarkCommand, String> {
    parse(&words(line), &names()).map_err(|error| error.to_string())
}

/// A rule as `-S` writes it, with its family.
fn written(rule: &MarkRule) -> String {
    let row = MarkRow { place: 1, rule: rule.clone(), packets: 0, bytes: 0 };
    listing::save(&[row]).lines().nth(1).unwrap().to_owned()
}

#[test]
fn words_make_the_rule_that_they_say() {
    let expected = MarkRule {
        destination: AddressMatch::prefix(IpAddr::from([10, 88, 0, 100]), 32, false),
        protocol: ProtocolMatch { number: 6, inverted: false },
        ports: vec![PortMatch::Transport {
            source: PortRange::ANY,
            destination: PortRange { first: 80, last: 80, inverted: false },
        }],
        target: Some(MarkTarget::Mark { value: 10, mask: u32::MAX }),
        ..MarkRule::any(Family::V4)
    };
    let line = "-t mangle -A PREROUTING -d vip -p tcp --dport http -j MARK --set-mark 10";
    assert_eq!(read(line), Ok(MarkCommand::Append { rules: vec![expected] }));
}

#[test]
fn a_log_has_a_command_in_words_that_ask_for_it() {
    for line in [
        "-A PREROUTING -d 10.88.0.100/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0xa/0xffffffff",
        "-6 -I PREROUTING 3 ! -s fd88::/64 -i eth+ -p udp -m multiport ! --dports 53,1000:2000 -j ACCEPT",
        "-R PREROUTING 2 -j RETURN",
        "-D PREROUTING -p tcp -j ACCEPT",
        "-6 -D PREROUTING 4",
        "-C PREROUTING -j ACCEPT",
        "-F PREROUTING",
        "-6 -Z PREROUTING 1",
    ] {
        let command = read(line).unwrap();
        assert_eq!(command.to_string(), format!("mark {line}"));
    }
    let many: Vec<String> = (1..=200).map(|host| format!("10.0.0.{host}")).collect();
    let command = read(&format!("-A PREROUTING -d {} -j ACCEPT", many.join(","))).unwrap();
    assert_eq!(
        command.to_string(),
        "mark -A PREROUTING -d 10.0.0.1/32 -j ACCEPT (and 199 more rules)",
        "hundreds are no line of a log"
    );
}

#[test]
fn the_family_is_what_the_words_say() {
    for (line, rules) in [
        ("-A PREROUTING -j ACCEPT", &["mark -t mangle -A PREROUTING -j ACCEPT"][..]),
        ("-4 -A PREROUTING -j ACCEPT", &["mark -t mangle -A PREROUTING -j ACCEPT"]),
        ("-6 -A PREROUTING -j ACCEPT", &["mark -6 -t mangle -A PREROUTING -j ACCEPT"]),
        ("-A PREROUTING -6 -j ACCEPT", &["mark -6 -t mangle -A PREROUTING -j ACCEPT"]),
        ("-A PREROUTING -d fd88::1 -j ACCEPT", &["mark -6 -t mangle -A PREROUTING -d fd88::1/128 -j ACCEPT"]),
        (
            "-A PREROUTING -s vip6 -d fd88::/64 -j ACCEPT",
            &["mark -6 -t mangle -A PREROUTING -s fd88::100/128 -d fd88::/64 -j ACCEPT"],
        ),
        (
            "-A PREROUTING -d vip6,fd88::2 -j ACCEPT",
            &[
                "mark -6 -t mangle -A PREROUTING -d fd88::100/128 -j ACCEPT",
                "mark -6 -t mangle -A PREROUTING -d fd88::2/128 -j ACCEPT",
            ],
        ),
        (
            "-A PREROUTING -s vip,b -d 10.0.0.0/8 -j ACCEPT",
            &[
                "mark -t mangle -A PREROUTING -s 10.88.0.100/32 -d 10.0.0.0/8 -j ACCEPT",
                "mark -t mangle -A PREROUTING -s 10.88.0.101/32 -d 10.0.0.0/8 -j ACCEPT",
            ],
        ),
    ] {
        let Ok(MarkCommand::Append { rules: made }) = read(line) else { panic!("{line}: {:?}", read(line)) };
        assert_eq!(made.iter().map(written).collect::<Vec<_>>(), rules, "{line}");
        assert!(made.iter().all(MarkRule::is_sound), "{line}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for line in [
        "mark -t mangle -A PREROUTING ! -s 10.0.0.0/8 -d 10.0.0.0/255.0.255.0 ! -i eth+ -p tcp -m tcp ! --sport 1:2 --dport 80 \
         -j MARK --set-xmark 0xa/0xff",
        "mark -6 -t mangle -A PREROUTING -d fd88::/64 ! -p udp -j RETURN",
        "mark -t mangle -A PREROUTING -p udp -m multiport ! --ports 1,2:3 -m udp --dport 5 -j MARK --set-xmark 0x0/0xffffffff",
        "mark -t mangle -A PREROUTING -p 47",
        "mark -t mangle -A PREROUTING -i eth0 -p gre -j ACCEPT",
    ] {
        let (_, rest) = line.split_once(' ').unwrap();
        let Ok(MarkCommand::Append { rules }) = read(rest) else { panic!("{:?}", read(rest)) };
        let expected = line.replace("-p 47", "-p gre");
        assert_eq!(written(&rules[0]), words(&expected).join(" "));
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    for (line, message) in [
        ("-t mangel -A PREROUTING", "can't use table `mangel': marks are set in the table `mangle'"),
        ("-t nat -A PREROUTING", "can't use table `nat': marks are set in the table `mangle'"),
        (
            "-A FORWARD -j ACCEPT",
            "chain `FORWARD' cannot be used: packets are marked in PREROUTING, as they come in",
        ),
        ("-N web", "-N: there are no chains but PREROUTING here"),
        ("-X web", "-X: there are no chains but PREROUTING here"),
        ("-P PREROUTING DROP", "policy `DROP' cannot be used: PREROUTING accepts"),
        ("-A PREROUTING -j MAKE", "target `MAKE' cannot be used: there are MARK, ACCEPT and RETURN"),
        ("-A PREROUTING -j DROP", "target `DROP' cannot be used: there are MARK, ACCEPT and RETURN"),
        (
            "-A PREROUTING -d vip -p tcp -dport 80",
            "unknown option \"-dport\" (write it with two hyphens: --dport)",
        ),
        (
            "-A PREROUTING -p tcp --dports 80,22 -j MARK --set-mark 10",
            "unknown option \"--dports\" (write -m multiport before it)",
        ),
        (
            "-A PREROUTING -d vip --dport 80",
            "unknown option \"--dport\" (write -p tcp, -p udp or -p sctp before it)",
        ),
        ("-A PREROUTING --set-mark 10", "unknown option \"--set-mark\" (write -j MARK before it)"),
        (
            "-A PREROUTING -j MARK --set-mark x",
            "MARK: bad integer value for option \"--set-mark\", or out of range: `x'",
        ),
        (
            "-A PREROUTING -j MARK --set-mark 0x100000000",
            "MARK: bad integer value for option \"--set-mark\", or out of range: `0x100000000'",
        ),
        (
            "-A PREROUTING -j MARK --or-mark 1/2",
            "MARK: bad integer value for option \"--or-mark\", or out of range: `1/2'",
        ),
        ("-A PREROUTING –p tcp", "Bad argument `–p' (it starts with '–', not with a hyphen: write -p)"),
        ("-A PREROUTING -d ! vip", "the ! goes before -d"),
        ("-A PREROUTING -d 10.0.0.1 -s fd88::1", "host/network `10.0.0.1' not found (it is an IPv4 address)"),
        ("-4 -A PREROUTING -s fd88::1", "host/network `fd88::1' not found (it is an IPv6 address)"),
        ("-6 -A PREROUTING -s vip", "host/network `vip' not found"),
        (
            "-A PREROUTING -m comment --comment x",
            "match `comment' cannot be used: there are tcp, udp, sctp and multiport",
        ),
        ("-A PREROUTING -p udp -m tcp --dport 80", "-m tcp needs `-p tcp'"),
        ("-A PREROUTING -m tcp --dport 80", "-m tcp needs `-p tcp'"),
        (
            "-A PREROUTING ! -p tcp --dport 80",
            "ports need `-p tcp', `-p udp' or `-p sctp', and no `!' before it",
        ),
        (
            "-A PREROUTING -p tcp -m multiport -j ACCEPT",
            "multiport: one of --dports, --sports and --ports is required",
        ),
        (
            "-A PREROUTING -o eth0",
            "option \"-o\" is not one that marks are set by (-s -d -i -p -m tcp|udp|sctp|multiport)",
        ),
        ("-A PREROUTING -v -j ACCEPT", "Illegal option `-v' with this command"),
        ("-A PREROUTING --line-numbers -j ACCEPT", "Illegal option `--line-numbers' with this command"),
        ("-A PREROUTING --s vip", "unknown option \"--s\""),
        ("--version=1", "option \"--version\" takes no argument"),
        ("", "no command specified"),
    ] {
        assert_eq!(read(line), Err(message.to_owned()), "{line}");
    }
    let many = vec!["10.0.0.1"; 17].join(",");
    let message = "the addresses make more than 256 rules".to_owned();
    assert_eq!(read(&format!("-A PREROUTING -s {many} -d {many}")), Err(message));
    let line = format!("-A PREROUTING -p tcp {}", "-m tcp ".repeat(9));
    assert_eq!(read(&line), Err("more than 8 matches on ports".to_owned()));
}

#[test]
fn counters_keep_to_their_columns() {
    let row = |packets, bytes| {
        let rows = [MarkRow { place: 1, rule: MarkRule::any(Family::V4), packets, bytes }];
        let options = command::MarkListOptions { numeric: true, verbose: true, ..Default::default() };
        let line = listing::table(&rows, false, options, &names());
        line[..12].to_owned()
    };
    assert_eq!(row(0, 99_999), "    0 99999 ");
    assert_eq!(row(100_000, 9_999_499), " 100K 9999K ");
    assert_eq!(row(9_999_500, 12_345_678_901), "  10M   12G ");
    assert_eq!(row(123_456_789_012, u64::MAX), " 123G 18446744T "[..12]);
}

#[test]
fn help_and_version_need_no_director() {
    let mut nobody = super::super::exchange::Remote::new(std::path::Path::new("/nonexistent"));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let names = names();
    let mut program =
        Program { names: &names, director: &mut nobody, stdout: &mut stdout, stderr: &mut stderr };
    assert_eq!(program.mark(&["-h".into()]), 0);
    assert_eq!(program.mark(&["-V".into()]), 0);
    assert_eq!(program.mark(&["-A".into()]), 2);
    assert_eq!(program.mark(&["-L".into()]), 2);
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.starts_with("iptables v1.8.9 as spoken by uvs ") && text.contains("\nUsage: uvs mark "));
    let text = String::from_utf8(stderr).unwrap();
    assert!(text.starts_with("uvs mark: option \"-A\" requires an argument\nTry `uvs mark -h'"), "{text}");
    assert!(text.contains("Can't reach the director at /nonexistent"), "{text}");
}
