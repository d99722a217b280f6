//! Services as the commands that make them: `-S`.

use std::fmt::Write;

use super::services::port_names;
use super::{Labels, ServerRow, ServiceRow, flag_names};
use crate::control::command::{TunnelChecksum, TunnelKind};
use crate::types::{Family, ForwardingMethod, Protocol, ServiceKey};

/// The lines that make one service and its servers.
///
/// Unlike `ipvsadm`'s they name the thresholds of a server that has any, so that restoring loses nothing.
pub fn save_service(service: &ServiceRow, labels: &Labels<'_>) -> String {
    let key = service_option(&service.key, labels);
    let spec = &service.spec;
    let mut text = format!("-A {key} -s {}", spec.scheduler);
    // Writing to a string cannot fail, here and below.
    if let Some(seconds) = spec.persistence {
        let _ = write!(text, " -p {seconds}");
        if !spec.netmask.is_host() {
            let _ = write!(text, " -M {}", spec.netmask);
        }
    }
    if let Some(engine) = &spec.engine {
        let _ = write!(text, " --pe {engine}");
    }
    if spec.one_packet {
        text.push_str(" -o");
    }
    let flags = flag_names(spec);
    if !flags.is_empty() {
        let _ = write!(text, " -b {flags}");
    }
    text.push('\n');
    let protocol = port_names(&service.key);
    for server in &service.servers {
        let endpoint = labels.endpoint(server.address, server.port, Some(protocol));
        let _ = writeln!(text, "-a {key} -r {endpoint}{}", server_options(server));
    }
    text
}

fn service_option(key: &ServiceKey, labels: &Labels<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            let option = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{option} {}", labels.endpoint(address, port, Some(protocol)))
        }
        ServiceKey::Mark { family: Family::V4, mark } => format!("-f {mark}"),
        ServiceKey::Mark { family: Family::V6, mark } => format!("-f {mark} -6"),
    }
}

fn server_options(server: &ServerRow) -> String {
    let spec = &server.spec;
    let method = match spec.method {
        ForwardingMethod::Masquerading => "-m",
        ForwardingMethod::Tunnel => "-i",
        // A server becomes local by its address, not by a command.
        ForwardingMethod::Local | ForwardingMethod::DirectRouting => "-g",
    };
    let mut text = format!(" {method} -w {}", spec.weight);
    for (option, threshold) in [("-x", spec.upper_threshold), ("-y", spec.lower_threshold)] {
        if threshold != 0 {
            let _ = write!(text, " {option} {threshold}");
        }
    }
    if spec.method != ForwardingMethod::Tunnel {
        return text;
    }
    let tunnel = spec.tunnel;
    let _ = write!(text, " --tun-type {}", tunnel.kind.name());
    if tunnel.kind == TunnelKind::Gue {
        let _ = write!(text, " --tun-port {}", tunnel.port);
    }
    if tunnel.kind != TunnelKind::Ipip {
        text.push_str(match tunnel.checksum {
            TunnelChecksum::None => " --tun-nocsum",
            TunnelChecksum::Checksum => " --tun-csum",
            TunnelChecksum::Remote => " --tun-remcsum",
        });
    }
    text
}
