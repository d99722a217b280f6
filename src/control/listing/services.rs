//! Tables of services and servers, byte for byte as `ipvsadm` 1.31 prints them.

use std::fmt::Write;

use super::labels::COLUMN;
use super::number::{counter, plain};
use super::{Counters, IPVS_VERSION, Labels, Rates, ServerRow, ServiceRow, flag_names};
use crate::control::command::{Columns, ListOptions, ServiceSpec, Tunnel, TunnelChecksum, TunnelKind};
use crate::types::{Family, ForwardingMethod, Protocol, ServiceKey};

/// The lines above a table. `table_size` is the connection table's; without it, as for a listing of one service,
/// the first line is left out.
pub fn services_header(table_size: Option<u64>, columns: Columns) -> String {
    let mut text = String::new();
    if let Some(size) = table_size {
        text = format!("IP Virtual Server version {IPVS_VERSION} (size={size})\n");
    }
    text.push_str(match columns {
        Columns::Connections => {
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        }
        Columns::Stats => {
            "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n  -> RemoteAddress:Port\n"
        }
        Columns::Rates => {
            "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n  -> RemoteAddress:Port\n"
        }
        Columns::Thresholds => {
            "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n  -> RemoteAddress:Port\n"
        }
        Columns::Persistent => {
            "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n  -> RemoteAddress:Port\n"
        }
        Columns::Tunnels => {
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n"
        }
    });
    text
}

/// The lines of one service.
pub fn services_row(service: &ServiceRow, options: &ListOptions, labels: &Labels<'_>) -> String {
    let name = service_name(&service.key, labels);
    let mut text = match options.columns {
        Columns::Stats => format!("{name:<33}{}\n", all_counters(&service.counters, options.exact)),
        Columns::Rates => {
            let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = service.rates;
            let rates = Counters { connections, in_packets, out_packets, in_bytes, out_bytes };
            format!("{name:<33}{}\n", all_counters(&rates, options.exact))
        }
        _ => format!("{name} {}\n", properties(&service.spec)),
    };
    let protocol = port_names(&service.key);
    for server in &service.servers {
        let name = labels.cut_endpoint(server.address, server.port, Some(protocol));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  -> {name:<COLUMN$}{}", server_columns(server, options));
    }
    text
}

/// The protocol under which names of ports are looked up.
pub(super) const fn port_names(key: &ServiceKey) -> Protocol {
    match key {
        ServiceKey::Address { protocol, .. } => *protocol,
        ServiceKey::Mark { .. } => Protocol::Tcp,
    }
}

fn service_name(key: &ServiceKey, labels: &Labels<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            format!("{protocol:<4} {}", labels.cut_endpoint(address, port, Some(protocol)))
        }
        ServiceKey::Mark { family: Family::V4, mark } => format!("FWM  {mark}"),
        ServiceKey::Mark { family: Family::V6, mark } => format!("FWM  {mark} IPv6"),
    }
}

fn properties(spec: &ServiceSpec) -> String {
    let mut text = spec.scheduler.clone();
    let flags = flag_names(spec);
    if !flags.is_empty() {
        let _ = write!(text, " ({flags})");
    }
    if let Some(seconds) = spec.persistence {
        let _ = write!(text, " persistent {seconds}");
        if !spec.netmask.is_host() {
            let _ = write!(text, " mask {}", spec.netmask);
        }
    }
    if let Some(engine) = &spec.engine {
        let _ = write!(text, " pe {engine}");
    }
    if spec.one_packet {
        text.push_str(" ops");
    }
    text
}

fn all_counters(counters: &Counters, exact: bool) -> String {
    let Counters { connections, in_packets, out_packets, in_bytes, out_bytes } = *counters;
    [connections, in_packets, out_packets, in_bytes, out_bytes].map(|number| counter(number, exact)).concat()
}

fn server_columns(server: &ServerRow, options: &ListOptions) -> String {
    let ServerRow { spec, active, inactive, persistent, counters, rates, .. } = server;
    let (weight, method) = (spec.weight, method_name(spec.method));
    match options.columns {
        Columns::Connections => format!(" {method:<7} {weight:<6} {active:<10} {inactive:<10}"),
        Columns::Stats => all_counters(counters, options.exact),
        Columns::Rates => {
            let counts = [rates.connections, rates.in_packets, rates.out_packets].map(plain).concat();
            counts + &[rates.in_bytes, rates.out_bytes].map(|rate| counter(rate, options.exact)).concat()
        }
        Columns::Thresholds => {
            format!(" {:<10} {:<10} {active:<10} {inactive:<10}", spec.upper_threshold, spec.lower_threshold)
        }
        Columns::Persistent => format!(" {weight:<9} {persistent:<11} {active:<10} {inactive:<10}"),
        Columns::Tunnels => {
            let tunnel = match spec.method {
                ForwardingMethod::Tunnel => tunnel_text(&spec.tunnel),
                _ => "n/a".to_owned(),
            };
            format!(" {method:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
        }
    }
}

const fn method_name(method: ForwardingMethod) -> &'static str {
    match method {
        ForwardingMethod::Masquerading => "Masq",
        ForwardingMethod::Local => "Local",
        ForwardingMethod::Tunnel => "Tunnel",
        ForwardingMethod::DirectRouting => "Route",
    }
}

fn tunnel_text(tunnel: &Tunnel) -> String {
    let checksum = match tunnel.checksum {
        TunnelChecksum::None => "-c",
        TunnelChecksum::Checksum => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    match tunnel.kind {
        TunnelKind::Ipip => "ipip".to_owned(),
        TunnelKind::Gue => format!("gue:{}:{checksum}", tunnel.port),
        TunnelKind::Gre => format!("gre:{checksum}"),
    }
}
