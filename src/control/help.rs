//! What `-h` and `-v` print.

use super::command::Command;
use super::listing::IPVS_VERSION;

/// The text of a command that needs no director; `program` is what the program calls itself.
pub(super) fn text(command: &Command, program: &str) -> Option<String> {
    match command {
        Command::Help => Some(format!("{}Usage:\n{}{OPTIONS}", version(), USAGE.replace('%', program))),
        Command::Version => Some(version()),
        _ => None,
    }
}

fn version() -> String {
    format!("ipvsadm v1.31 as spoken by uvs {} (IPVS v{IPVS_VERSION})\n", env!("CARGO_PKG_VERSION"))
}

/// How commands are put together; `%` stands for the program's name.
const USAGE: &str = "\
  % -A|E SERVICE [-s scheduler] [-p [seconds]] [-M netmask] [--pe engine] [-o] [-b flags]
  % -D SERVICE
  % -C
  % -a|e SERVICE -r SERVER [server options]
  % -d SERVICE -r SERVER
  % -L|l [SERVICE] [list options]
  % -Z [SERVICE]
  % -S [-n]
  % -R
  % --set tcp tcpfin udp
  % --start-daemon master|backup [daemon options]
  % --stop-daemon master|backup
  % -h
";

/// What each word means.
const OPTIONS: &str = "
Commands:
  -A, --add-service      a new virtual service
  -E, --edit-service     set everything about a service anew
  -D, --delete-service   a service goes, with its servers
  -C, --clear            all services go
  -a, --add-server       a new real server for a service
  -e, --edit-server      set everything about a server anew
  -d, --delete-server    a server goes; its connections wait for it to come back
  -L, -l, --list         what there is (also without any command)
  -Z, --zero             counters back to zero
  -S, --save             print the services as rules
  -R, --restore          do the rules that are read from standard input, one on a line
  --set                  timeouts in seconds, 0 to keep: TCP, TCP after FIN, UDP
  --start-daemon         start telling other directors about connections, or listening to them
  --stop-daemon          stop that
  -h, --help             this text
  -v, --version          its first line

SERVICE is one of:
  -t, --tcp-service  host[:port]    port 0, the default, is every port and needs -p
  -u, --udp-service  host[:port]
  --sctp-service     host[:port]
  -f, --fwmark-service N            packets with mark N, from 1 on
    -6, --ipv6                      of IPv6; after -f

Services:
  -s, --scheduler NAME        rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos none; default wlc
  -p, --persistent [SECONDS]  a client stays with its server; default 360
  -M, --netmask MASK          clients with the same masked address count as one (IPv6: a length)
  --pe NAME                   persistence engine: sip
  -o, --ops                   schedule every packet by itself; UDP only
  -b, --sched-flags LIST      sh-fallback sh-port, mh-fallback mh-port, or flag-1 flag-2 flag-3

Servers:
  -r, --real-server host[:port]
  -g, --gatewaying            DR: only Ethernet addresses change; the default
  -i, --ipip                  TUN: wrapped in another packet
    --tun-type KIND           ipip, gue or gre; default ipip
    --tun-port PORT           where gue goes to
    --tun-nocsum --tun-csum --tun-remcsum
  -m, --masquerading          NAT: addresses and ports change
  -w, --weight N              default 1; 0 takes nothing new
  -x, --u-threshold N         takes nothing new from N connections on
  -y, --l-threshold N         takes again below N

Lists:
  -n, --numeric               no names
  -c, --connection            connections and templates
  --timeout                   timeouts
  --daemon                    synchronization daemons
  --stats --rate              counters, and per second
  --exact                     with all digits
  --thresholds --persistent-conn --tun-info
  --nosort                    in the director's own order
  --sort                      says nothing new

Daemons:
  --mcast-interface NAME      default eth0
  --syncid N                  0 to 255; default 0
  --sync-maxlen BYTES         longest message
  --mcast-group ADDRESS       default 224.0.0.81
  --mcast-port PORT           default 8848
  --mcast-ttl N               default 1
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_word_and_the_program() {
        let text = text(&Command::Help, "uvs adm").unwrap();
        let recorded =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/text/formats.txt"));
        let mut words = 0;
        for word in recorded.unwrap().split(|c: char| c != '-' && !c.is_ascii_alphanumeric()) {
            if word.starts_with("--") && word.len() > 2 {
                assert!(text.contains(word), "{word}");
                words += 1;
            }
        }
        assert!(words > 50, "{words}");
        assert!(text.contains("\n  uvs adm -R\n"));
        assert!(text.starts_with(&super::text(&Command::Version, "x").unwrap()));
    }
}
