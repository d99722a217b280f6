//! The table of connections: `-L -c`.

use super::{ConnectionRow, Labels};

/// The lines above the table; with columns for persistence engines if `engine_data`.
pub fn connection_header(engine_data: bool) -> &'static str {
    if engine_data {
        "IPVS connection entries\n\
         pro expire state       source             virtual            destination        pe name          pe_data\n"
    } else {
        "IPVS connection entries\npro expire state       source             virtual            destination\n"
    }
}

/// The line of one connection.
pub fn connection_row(row: &ConnectionRow, engine_data: bool, labels: &Labels<'_>) -> String {
    let ConnectionRow { protocol, expires, state, client, service, server, engine } = row;
    let name = protocol.map_or_else(|| "IP".to_owned(), |protocol| protocol.to_string());
    let [client, service, server] =
        [client, service, server].map(|&(address, port)| labels.endpoint(address, port, *protocol));
    // Minutes have no limit: what comes after them shifts.
    let expires = format!("{:02}:{:02}", expires / 60, expires % 60);
    let row = format!("{name:<3} {expires:<6} {state:<11} {client:<18} {service:<18} ");
    match engine.as_ref().filter(|_| engine_data) {
        Some((engine, data)) => format!("{row}{server:<16} {engine:<18} {data}\n"),
        None => format!("{row}{server}\n"),
    }
}
