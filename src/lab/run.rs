//! `uvs lab` from beginning to end.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};

use super::director::{CONTROL_VARIABLE, Director};
use super::error::LabError;
use super::host::Host;
use super::http;
use super::options::LabOptions;
use super::place::{Place, sweep};
use super::topology::{DIRECTOR_INTERFACE, PORT, Topology};
use crate::sys::signals::Termination;

/// How long one request may take: two repetitions of a lost SYN.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Failures in a row after which no more requests are sent.
const PATIENCE: u32 = 5;
/// How often the lab looks for Ctrl-C and for the director's health while it waits.
const POLL: Duration = Duration::from_millis(100);

/// `uvs lab`: runs the lab with this program as the director, prints to the standard output, and says by the
/// exit status whether every request was answered (0) or not (1).
pub fn main(options: &LabOptions) -> ExitCode {
    let program = std::env::current_exe().map_err(LabError::system("the program's own path"));
    match program.and_then(|program| run(options, &program, &mut io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uvs lab: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the lab with `program` as `uvs`, and prints to `out`.
///
/// # Errors
/// Without root; where the network, the director or its commands fail; where a request was not answered; after
/// Ctrl-C. Everything was removed then, too.
pub fn run(options: &LabOptions, program: &Path, out: &mut dyn Write) -> Result<(), LabError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::NeedsRoot);
    }
    let termination = Termination::catch().map_err(LabError::system("catching Ctrl-C"))?;
    let interrupted = || termination.requested();
    for name in sweep().map_err(LabError::system("removing what earlier labs left behind"))? {
        say(out, &format!("Removed what the lab {name}, which was killed, left behind."))?;
    }
    let place = Place::claim().map_err(LabError::system("the lab's directory"))?;
    say(out, &introduction(options))?;
    let topology = Topology::build(&place, options.plan(), &interrupted)?;
    let more = options.for_director();
    let mut director =
        Director::start(program, &topology.director, &place, DIRECTOR_INTERFACE, &more, &interrupted)?;
    configure(options, &topology, &director)?;
    let tally = send(options, &topology, &interrupted, out)?;
    say(out, &tally.table(&topology))?;
    director.check_alive()?;
    for arguments in listings(options) {
        say(out, &format!("# uvs {}\n{}", arguments.join(" "), director.command(arguments)?))?;
    }
    if options.keep {
        say(out, &instructions(options, &topology, &director, program))?;
        while !interrupted() {
            director.check_alive()?;
            std::thread::sleep(POLL);
        }
        say(out, "Removing the lab.")?;
    }
    tally.verdict()
}

/// What is shown once all requests are answered.
fn listings(options: &LabOptions) -> Vec<&'static [&'static str]> {
    let mut listings: Vec<&[&str]> = vec![&["adm", "-Ln"], &["adm", "-Lnc"]];
    if options.mark.is_some() {
        listings.insert(0, &["mark", "-t", "mangle", "-L", "-n"]);
    }
    if options.persistent.is_some() {
        listings.push(&["adm", "-Ln", "--persistent-conn"]);
    }
    listings.extend([&["adm", "-Ln", "--stats"][..], &["stats"]]);
    listings
}

fn say(out: &mut dyn Write, text: &str) -> Result<(), LabError> {
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(LabError::system("the lab's output"))
}

fn introduction(options: &LabOptions) -> String {
    let address = |host: Host| host.address(options.family());
    let mut clients = format!("client {}", address(Host::Client(0)));
    if options.clients() > 1 {
        let last = address(Host::Client(options.clients() - 1));
        clients = format!("clients {} to {last}", address(Host::Client(0)));
    }
    let mut text = format!(
        "{clients} -> router {} -> {} on the director {} -> {} real server(s), scheduler {}, {}",
        address(Host::RouterInside),
        options.socket(),
        address(Host::Director),
        options.servers,
        options.scheduler,
        options.forwarding.explanation()
    );
    if let Some(mark) = options.mark {
        text += &format!(" A rule marks what is for the service with {mark}.");
    }
    if let Some(seconds) = options.persistent {
        text += &format!(" Each client sticks to its real server for {seconds} s after its last connection.");
    }
    text
}

/// Adds the virtual service and its real servers, as an operator would.
fn configure(options: &LabOptions, topology: &Topology, director: &Director<'_>) -> Result<(), LabError> {
    let service: Vec<String> = options.service();
    let service: Vec<&str> = service.iter().map(String::as_str).collect();
    let (virtual_address, port) = (options.socket().ip().to_string(), PORT.to_string());
    if let Some(mark) = options.mark {
        let mark = &mark.to_string();
        let rule = ["-d", &virtual_address, "-p", "tcp", "--dport", &port, "-j", "MARK", "--set-mark", mark];
        director.command(&[&["mark", "-t", "mangle", "-A", "PREROUTING"][..], &rule].concat())?;
    }
    let seconds = options.persistent.map(|seconds| seconds.to_string());
    let mut words = [&["adm", "-A"][..], &service, &["-s", &options.scheduler]].concat();
    if let Some(seconds) = &seconds {
        words.extend(["-p", seconds]);
    }
    director.command(&words)?;
    for server in &topology.real_servers {
        let real_server = SocketAddr::new(server.address, PORT).to_string();
        let method = ["-r", &real_server, options.forwarding.flag()];
        director.command(&[&["adm", "-a"][..], &service, &method].concat())?;
    }
    Ok(())
}

/// Who answered how often.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Tally {
    answers: BTreeMap<String, u32>,
    /// By client, who answered it.
    by_client: BTreeMap<IpAddr, BTreeMap<String, u32>>,
    sent: u32,
    failed: u32,
    last_failure: String,
    took: Duration,
}

impl Tally {
    fn add(&mut self, client: IpAddr, answer: Result<String, String>) {
        self.sent += 1;
        match answer {
            Ok(name) => {
                *self.by_client.entry(client).or_default().entry(name.clone()).or_default() += 1;
                *self.answers.entry(name).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                self.last_failure = error;
            }
        }
    }

    fn table(&self, topology: &Topology) -> String {
        let mut table = format!(
            "{} requests in {:.2} s: {} answered, {} failed",
            self.sent,
            self.took.as_secs_f64(),
            self.sent - self.failed,
            self.failed
        );
        for server in &topology.real_servers {
            let count = self.answers.get(&server.name).copied().unwrap_or_default();
            table.push_str(&format!("\n  {:8} {:16} {count:>8}", server.name, server.address));
        }
        if self.by_client.len() > 1 {
            for (client, answers) in &self.by_client {
                let answers: Vec<String> =
                    answers.iter().map(|(name, count)| format!("{name} {count}")).collect();
                table.push_str(&format!("\n  client {client}: {}", answers.join(", ")));
            }
        }
        table.push('\n');
        table
    }

    fn verdict(self) -> Result<(), LabError> {
        if self.failed == 0 {
            return Ok(());
        }
        Err(LabError::Requests { failed: self.failed, requests: self.sent, last: self.last_failure })
    }
}

/// Sends the requests, one after the other, each on a connection of its own, and shows how far it is.
fn send(
    options: &LabOptions,
    topology: &Topology,
    interrupted: &(dyn Fn() -> bool + Sync),
    out: &mut dyn Write,
) -> Result<Tally, LabError> {
    let names: Vec<&str> = topology.real_servers.iter().map(|server| server.name.as_str()).collect();
    let (sender, receiver) = unbounded();
    let begin = Instant::now();
    let live = io::stdout().is_terminal();
    let mut tally = Tally::default();
    let client = &topology.client;
    std::thread::scope(|scope| {
        let (requests, names) = (options.requests, &names);
        let clients: Vec<IpAddr> =
            (0..options.clients()).map(|index| Host::Client(index).address(options.family())).collect();
        let service = options.socket();
        let thread =
            scope.spawn(move || client.run(|| ask(requests, service, &clients, names, interrupted, &sender)));
        loop {
            match receiver.recv_timeout(POLL) {
                Ok((client, answer)) => {
                    tally.add(client, answer);
                    if live {
                        // Only a picture: that it cannot be drawn is no failure.
                        let _ = write!(out, "\r{}/{requests}", tally.sent).and_then(|()| out.flush());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match thread.join() {
            Ok(entered) => entered.map_err(LabError::system("entering the client's namespace")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    if live {
        say(out, "")?;
    }
    if interrupted() {
        return Err(LabError::Interrupted);
    }
    tally.took = begin.elapsed();
    Ok(tally)
}

/// One request, by which client, and who answered or what went wrong.
type Answer = (IpAddr, Result<String, String>);

/// The clients: one request after the other, by turns, until all are sent, too many failed, or Ctrl-C.
fn ask(
    requests: u32,
    service: SocketAddr,
    clients: &[IpAddr],
    names: &[&str],
    interrupted: &(dyn Fn() -> bool + Sync),
    answers: &Sender<Answer>,
) {
    let mut in_a_row = 0;
    for (_, &client) in (0..requests).zip(clients.iter().cycle()) {
        if interrupted() || in_a_row == PATIENCE {
            return;
        }
        let answer = match http::get_from(client, service, "www.example.com", "/", REQUEST_TIMEOUT) {
            Ok(response) if response.status == 200 && names.contains(&response.body.trim()) => {
                Ok(response.body.trim().to_owned())
            }
            Ok(response) => Err(format!("unexpected answer {}: {}", response.status, response.body.trim())),
            Err(error) => Err(error.to_string()),
        };
        in_a_row = if answer.is_ok() { 0 } else { in_a_row + 1 };
        if answers.send((client, answer)).is_err() {
            return;
        }
    }
}

/// How to look around in a lab that is left up.
fn instructions(
    options: &LabOptions,
    topology: &Topology,
    director: &Director<'_>,
    program: &Path,
) -> String {
    let control = director.control().display();
    let mut text = String::from("The lab stays up until Ctrl-C. To enter one of its hosts:\n");
    for (role, namespace) in topology.namespaces() {
        text.push_str(&format!("  {role:9} nsenter --net={}\n", namespace.path().display()));
    }
    text.push_str(&format!(
        "The director's log: {}\nTo configure the director, from anywhere:\n",
        director.log().display()
    ));
    text.push_str(&format!("  export {CONTROL_VARIABLE}={control}\n  {} adm -Ln\n", program.display()));
    let client = topology.client.path().display();
    text.push_str(&format!("A request:\n  nsenter --net={client} curl -g http://{}/", options.socket()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Family;

    #[test]
    fn one_failed_request_fails_the_lab() {
        let mut tally = Tally::default();
        let client = Host::Client(0).address(Family::V4);
        tally.add(client, Ok("node1".to_owned()));
        assert!(tally.clone().verdict().is_ok());
        tally.add(client, Err("timed out".to_owned()));
        let error = tally.verdict().unwrap_err();
        assert_eq!(error.to_string(), "1 of 2 requests failed; the last one: timed out");
    }
}
