//! `uvs lab` from beginning to end.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};

use super::director::{CONTROL_VARIABLE, Director};
use super::error::LabError;
use super::http;
use super::place::{Place, sweep};
use super::topology::{
    DIRECTOR, DIRECTOR_INTERFACE, MAX_CLIENTS, MAX_SERVERS, PORT, ROUTER_INSIDE, Topology, VIRTUAL,
    client_address,
};
use crate::control::command::DEFAULT_PERSISTENCE;
use crate::sys::signals::Termination;

/// How long one request may take: two repetitions of a lost SYN.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Failures in a row after which no more requests are sent.
const PATIENCE: u32 = 5;
/// How often the lab looks for Ctrl-C and for the director's health while it waits.
const POLL: Duration = Duration::from_millis(100);

/// How the director gets at its frames.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum IoKind {
    /// What the interface can do best.
    #[default]
    Auto,
    /// AF_XDP.
    Xdp,
    /// Raw sockets.
    Packet,
}

/// Where the XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum XdpMode {
    /// In the driver, where it can be.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

/// Options of `uvs lab`.
#[derive(Clone, PartialEq, Eq, Debug, clap::Args)]
pub struct LabOptions {
    /// How many requests the client sends
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// The scheduler of the virtual service
    #[arg(long, value_name = "NAME", default_value = "rr")]
    pub scheduler: String,
    /// How many real servers there are
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_SERVERS)))]
    pub servers: u8,
    /// How many clients send requests, by turns; four where they are to stick
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CLIENTS)))]
    pub clients: Option<u8>,
    /// Let each client stick to one real server, for so many seconds after its last connection
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = default_persistence(),
        value_parser = clap::value_parser!(u32).range(1..=2_678_400))]
    pub persistent: Option<u32>,
    /// Select the service's packets by a mark
    #[arg(long, value_name = "MARK", num_args = 0..=1, default_missing_value = "10",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub mark: Option<u32>,
    /// How the director gets at its frames
    #[arg(long, value_enum, default_value_t)]
    pub io: IoKind,
    /// Where the XDP program is attached
    #[arg(long, value_enum, default_value_t)]
    pub xdp_mode: XdpMode,
    /// Leave everything up after the requests, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// What `--persistent` alone asks for: as much as `-p` alone does.
fn default_persistence() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| DEFAULT_PERSISTENCE.to_string());
    &TEXT
}

impl LabOptions {
    /// How many clients there are.
    fn clients(&self) -> u8 {
        self.clients.unwrap_or(if self.persistent.is_some() { 4 } else { 1 })
    }

    /// The words that select the virtual service.
    fn service(&self) -> [String; 2] {
        match self.mark {
            Some(mark) => ["-f".to_owned(), mark.to_string()],
            None => ["-t".to_owned(), format!("{VIRTUAL}:{PORT}")],
        }
    }

    /// The director's options that follow from these.
    fn for_director(&self) -> Vec<String> {
        let mut options = Vec::new();
        let mut pass = |name: &str, value: &str| options.extend([name.to_owned(), value.to_owned()]);
        match self.io {
            IoKind::Auto => {}
            IoKind::Xdp => pass("--io", "xdp"),
            IoKind::Packet => pass("--io", "packet"),
        }
        match self.xdp_mode {
            XdpMode::Auto => {}
            XdpMode::Native => pass("--xdp-mode", "native"),
            XdpMode::Generic => pass("--xdp-mode", "generic"),
        }
        options
    }
}

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
    let topology = Topology::build(&place, options.clients(), options.servers, &interrupted)?;
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
        say(out, &instructions(&topology, &director, program))?;
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
    let mut clients = client_address(0).to_string();
    if options.clients() > 1 {
        clients = format!("s {clients} to {}", client_address(options.clients() - 1));
    }
    let mut text = format!(
        "client{}{clients} -> router {ROUTER_INSIDE} -> {VIRTUAL}:{PORT} on the director {DIRECTOR} -> {} real \
         server(s), scheduler {}, direct routing: answers bypass the director.",
        if options.clients() > 1 { "" } else { " " },
        options.servers,
        options.scheduler
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
    let [selector, service] = &options.service();
    let (virtual_address, port) = (VIRTUAL.to_string(), PORT.to_string());
    if options.mark.is_some() {
        let rule =
            ["-d", &virtual_address, "-p", "tcp", "--dport", &port, "-j", "MARK", "--set-mark", service];
        director.command(&[&["mark", "-t", "mangle", "-A", "PREROUTING"][..], &rule].concat())?;
    }
    let seconds = options.persistent.map(|seconds| seconds.to_string());
    let mut words = vec!["adm", "-A", selector, service, "-s", &options.scheduler];
    if let Some(seconds) = &seconds {
        words.extend(["-p", seconds]);
    }
    director.command(&words)?;
    for server in &topology.real_servers {
        let real_server = format!("{}:{PORT}", server.address);
        director.command(&["adm", "-a", selector, service, "-r", &real_server, "-g"])?;
    }
    Ok(())
}

/// Who answered how often.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Tally {
    answers: BTreeMap<String, u32>,
    /// By client, who answered it.
    by_client: BTreeMap<Ipv4Addr, BTreeMap<String, u32>>,
    sent: u32,
    failed: u32,
    last_failure: String,
    took: Duration,
}

impl Tally {
    fn add(&mut self, client: Ipv4Addr, answer: Result<String, String>) {
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
        let clients: Vec<Ipv4Addr> = (0..options.clients()).map(client_address).collect();
        let thread = scope.spawn(move || client.run(|| ask(requests, &clients, names, interrupted, &sender)));
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
type Answer = (Ipv4Addr, Result<String, String>);

/// The clients: one request after the other, by turns, until all are sent, too many failed, or Ctrl-C.
fn ask(
    requests: u32,
    clients: &[Ipv4Addr],
    names: &[&str],
    interrupted: &(dyn Fn() -> bool + Sync),
    answers: &Sender<Answer>,
) {
    let address = SocketAddrV4::new(VIRTUAL, PORT);
    let mut in_a_row = 0;
    for (_, &client) in (0..requests).zip(clients.iter().cycle()) {
        if interrupted() || in_a_row == PATIENCE {
            return;
        }
        let answer = match http::get_from(client, address, "www.example.com", "/", REQUEST_TIMEOUT) {
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
fn instructions(topology: &Topology, director: &Director<'_>, program: &Path) -> String {
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
    text.push_str(&format!("A request:\n  nsenter --net={client} curl http://{VIRTUAL}/"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        lab: LabOptions,
    }

    fn parse(arguments: &[&str]) -> Result<LabOptions, clap::Error> {
        Program::try_parse_from([&["lab"], arguments].concat()).map(|program| program.lab)
    }

    #[test]
    fn options_have_defaults_and_bounds() {
        let defaults = parse(&[]).unwrap();
        assert_eq!((defaults.requests, defaults.scheduler.as_str(), defaults.servers), (100, "rr", 2));
        assert!(!defaults.keep && defaults.for_director().is_empty());
        let options = parse(&["--io", "xdp", "--xdp-mode", "generic", "--servers", "16", "--keep"]).unwrap();
        assert_eq!(options.for_director(), ["--io", "xdp", "--xdp-mode", "generic"]);
        assert!(options.keep);
        assert_eq!((defaults.clients(), defaults.persistent, defaults.mark), (1, None, None));
        assert_eq!(defaults.service(), ["-t", "192.168.50.100:80"]);
        let sticky = parse(&["--persistent", "--mark"]).unwrap();
        assert_eq!((sticky.clients(), sticky.persistent, sticky.mark), (4, Some(360), Some(10)));
        assert_eq!(sticky.service(), ["-f", "10"]);
        let sticky = parse(&["--persistent", "5", "--mark=7", "--clients", "2"]).unwrap();
        assert_eq!((sticky.clients(), sticky.persistent, sticky.mark), (2, Some(5), Some(7)));
        for bad in [
            ["--clients", "17"],
            ["--persistent", "0"],
            ["--mark", "0"],
            ["--servers", "0"],
            ["--servers", "17"],
            ["--requests", "0"],
            ["--io", "dpdk"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_failed_request_fails_the_lab() {
        let mut tally = Tally::default();
        let client = client_address(0);
        tally.add(client, Ok("node1".to_owned()));
        assert!(tally.clone().verdict().is_ok());
        tally.add(client, Err("timed out".to_owned()));
        let error = tally.verdict().unwrap_err();
        assert_eq!(error.to_string(), "1 of 2 requests failed; the last one: timed out");
    }
}
