//! The program behind `uvs adm`, `ipvsadm`, `ipvsadm-save` and `ipvsadm-restore`.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;

use super::client::control_path;
use super::command::{Command, ListOptions, ListWhat};
use super::exchange::{Exchange, Remote};
use super::grammar::{GrammarError, parse, rules};
use super::help;
use super::listing::{
    Labels, ServiceRow, connection_header, connection_row, save_service, services_header, services_row,
    sort_services,
};
use super::marks::command::{MarkCommand, MarkRow};
use super::marks::listing as marks;
use super::names::{Names, SystemNames};
use super::protocol::{MAX_COMMANDS, MAX_MESSAGE, Request, Response};

/// The longest rules text that `-R` reads, in bytes: some 800 000 servers.
pub const MAX_RULES: u64 = 64 << 20;
/// How much output is gathered before it is written, in bytes. A director does not wait for a person who pages
/// through a long listing, so a listing has to be taken off its hands first.
const MAX_GATHERED: usize = 64 << 20;

/// What a program's own name asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invocation {
    /// `ipvsadm`
    Adm,
    /// `ipvsadm-save`
    Save,
    /// `ipvsadm-restore`
    Restore,
}

/// What the name that a program was started under asks for; `None` for any other name.
pub fn invocation(argv0: &std::ffi::OsStr) -> Option<Invocation> {
    match Path::new(argv0).file_name()?.to_str()? {
        "ipvsadm" => Some(Invocation::Adm),
        "ipvsadm-save" => Some(Invocation::Save),
        "ipvsadm-restore" => Some(Invocation::Restore),
        _ => None,
    }
}

/// Runs the program: `args` with its own name first, as messages shall call it (for `uvs adm`, just that). Returns the
/// exit status.
pub fn adm(args: &[OsString], stdin: &mut dyn Read, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    let (names, path) = (SystemNames::new(), control_path());
    let mut program = Program { names: &names, director: &mut Remote::new(&path), stdout, stderr };
    program.run(args, stdin)
}

/// The program with what it needs from its surroundings.
pub struct Program<'a> {
    /// Names of hosts and ports.
    pub names: &'a dyn Names,
    /// The director.
    pub director: &'a mut dyn Exchange,
    /// Where listings go.
    pub stdout: &'a mut dyn Write,
    /// Where messages go.
    pub stderr: &'a mut dyn Write,
}

impl std::fmt::Debug for Program<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Program<'_> {
    /// As [`adm`].
    pub fn run(&mut self, args: &[OsString], stdin: &mut dyn Read) -> i32 {
        let mut words = args.iter().map(|word| word.to_string_lossy().into_owned());
        let name = words.next().unwrap_or_else(|| "ipvsadm".to_owned());
        let words: Vec<String> = words.collect();
        let command = match args.first().and_then(|argv0| invocation(argv0)) {
            Some(Invocation::Save) => {
                if let Some(word) = words.iter().find(|word| word.starts_with('-') && *word != "-n") {
                    self.tell(&format!(
                        "{name}: {word}: write {name} [-n] to print the services as rules, with -n as numbers"
                    ));
                    return 1;
                }
                Command::Save { numeric: words.iter().any(|word| word == "-n") }
            }
            Some(Invocation::Restore) => return self.restore(&name, stdin, true),
            _ => match parse(&words, self.names) {
                Ok(command) => command,
                Err(error) => {
                    self.complain(&name, &error);
                    return error.status();
                }
            },
        };
        match command {
            Command::Restore => self.restore(&name, stdin, false),
            command => self.execute(&name, None, command),
        }
    }

    /// Does one command other than [`Command::Restore`], as if it had been read under this program's name. A message
    /// about it names `place` first. Returns the exit status.
    pub fn execute(&mut self, name: &str, place: Option<String>, command: Command) -> i32 {
        if let Some(text) = help::text(&command, name) {
            return i32::from(self.print(&text).is_err());
        }
        let mut session = match Session::connect(self) {
            Ok(session) => session,
            Err(status) => return status,
        };
        session.add(place, command);
        session.finish()
    }

    /// Does every rule that it can, in order, and names each line that it cannot.
    ///
    /// The exit status is that of the last rule, as `ipvsadm`'s is. Where `ipvsadm` stops at a line that it does not
    /// understand, this goes on; but then the status is that line's.
    fn restore(&mut self, name: &str, stdin: &mut dyn Read, clear: bool) -> i32 {
        let mut bytes = Vec::new();
        match stdin.take(MAX_RULES + 1).read_to_end(&mut bytes) {
            Ok(length) if length as u64 > MAX_RULES => {
                self.tell(&format!(
                    "{name}: the rules are longer than {} MiB; nothing was changed",
                    MAX_RULES >> 20
                ));
                return 2;
            }
            Ok(_) => {}
            Err(error) => {
                self.tell(&format!("{name}: can't read the rules: {error}; nothing was changed"));
                return 2;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let names = self.names;
        let mut session = match Session::connect(self) {
            Ok(session) => session,
            Err(status) => return status,
        };
        if clear {
            session.add(None, Command::Flush);
        }
        let mut misunderstood = None;
        for rule in rules(&text, names) {
            let place = format!("line {}: {}", rule.number, rule.text);
            match rule.command {
                Ok(command) => match help::text(&command, name) {
                    Some(text) => session.output.push_str(&text),
                    None => session.add(Some(place), command),
                },
                Err(error) => {
                    // What came before it on the lines comes before it on the screen.
                    session.flush();
                    session.program.tell(&place);
                    session.program.complain(name, &error);
                    misunderstood.get_or_insert(error.status());
                }
            }
        }
        let status = session.finish();
        misunderstood.unwrap_or(status)
    }

    fn complain(&mut self, name: &str, error: &GrammarError) {
        if *error != GrammarError::NoCommand {
            self.tell(&error.to_string());
        }
        if error.points_to_help() {
            self.tell(&format!("Try `{name} -h' or '{name} --help' for more information."));
        }
    }

    fn tell(&mut self, line: &str) {
        tell(self.stderr, line);
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        print(self.stdout, text)
    }
}

/// Writes a line for a person. Where nobody reads it, there is nobody to tell that either.
fn tell(stderr: &mut dyn Write, line: &str) {
    let _ = writeln!(stderr, "{line}");
}

fn print(stdout: &mut dyn Write, text: &str) -> io::Result<()> {
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // As of a pager that was left.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// A conversation with a director: commands gather, and go out together.
struct Session<'p, 'a> {
    program: &'p mut Program<'a>,
    /// Commands that have not been sent, each with what a message about it has to name first.
    waiting: Vec<(Option<String>, Command)>,
    /// About how long the request for them will be.
    length: usize,
    output: String,
    /// Of the last command that was answered.
    status: i32,
    /// The director has gone, or the output cannot be written: nothing more is done.
    broken: Option<i32>,
}

impl<'p, 'a> Session<'p, 'a> {
    fn connect(program: &'p mut Program<'a>) -> Result<Self, i32> {
        match program.director.connect() {
            Ok(()) => Ok(Self {
                program,
                waiting: Vec::new(),
                length: 0,
                output: String::new(),
                status: 0,
                broken: None,
            }),
            Err(error) => {
                let _ = program.director.explain(&error, program.stderr);
                Err(2)
            }
        }
    }

    fn add(&mut self, place: Option<String>, command: Command) {
        let length = serde_json::to_string(&command).map_or(0, |text| text.len());
        if self.waiting.len() == MAX_COMMANDS || self.length + length > MAX_MESSAGE / 2 {
            self.flush();
        }
        self.waiting.push((place, command));
        self.length += length;
    }

    /// Sends what waits and prints the answers.
    fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.length = 0;
        if waiting.is_empty() || self.broken.is_some() {
            return;
        }
        let (places, commands): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let request = Request::Commands(commands);
        let Request::Commands(commands) = &request else { return };
        let mut left = places.iter().zip(commands);
        let mut answer = None;
        let Self { program, output, status, broken, .. } = self;
        let Program { names, director, stdout, stderr } = &mut **program;
        let names = *names;
        let outcome = director.call(&request, &mut |response| {
            let Some((place, command)) = answer.as_ref().map(|(now, _)| *now).or_else(|| left.next()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let printer =
                &mut answer.get_or_insert_with(|| ((place, command), Printer::new(command, names))).1;
            if let Response::Failed(error) = &response {
                // Listings before it come first on the screen, too.
                print(*stdout, &std::mem::take(output))?;
                if let Some(place) = place {
                    tell(*stderr, place);
                }
                tell(*stderr, &error.to_string());
                *status = error.status(command);
            } else if matches!(response, Response::Done) {
                *status = 0;
            }
            let ends = response.ends();
            printer.take(response, output);
            if ends {
                answer = None;
            }
            if output.len() > MAX_GATHERED {
                print(*stdout, &std::mem::take(output))?;
            }
            Ok(())
        });
        if let Err(error) = outcome {
            let _ = director.explain(&error, *stderr);
            *broken = Some(2);
        }
    }

    fn finish(mut self) -> i32 {
        self.flush();
        let output = std::mem::take(&mut self.output);
        if let Err(error) = self.program.print(&output) {
            self.program.tell(&format!("can't write: {error}"));
            return 1;
        }
        self.broken.unwrap_or(self.status)
    }
}

/// Turns the answer to one command into text.
struct Printer<'c> {
    command: &'c Command,
    names: &'c dyn Names,
    labels: Labels<'c>,
    table_size: u64,
    /// Services are printed in order, so all have to be there first.
    services: Vec<ServiceRow>,
    /// Likewise.
    marks: Vec<MarkRow>,
    headed: bool,
}

impl<'c> Printer<'c> {
    fn new(command: &'c Command, names: &'c dyn Names) -> Self {
        let numeric = match command {
            Command::List { options, .. } => options.numeric,
            Command::Save { numeric } => *numeric,
            _ => true,
        };
        let labels = if numeric { Labels::numeric() } else { Labels::named(names) };
        Self { command, names, labels, table_size: 0, services: Vec::new(), marks: Vec::new(), headed: false }
    }

    fn take(&mut self, response: Response, output: &mut String) {
        match response {
            Response::Table { size } => self.table_size = size,
            Response::Service(service) => self.services.push(service),
            Response::Servers(servers) => {
                if let Some(service) = self.services.last_mut() {
                    service.servers.extend(servers);
                }
            }
            Response::Connections(rows) => {
                let engine_data = self.head_connections(output);
                for row in &rows {
                    output.push_str(&connection_row(row, engine_data, &self.labels));
                }
            }
            Response::Timeouts(timeouts) => output.push_str(&timeouts.to_string()),
            Response::Daemons(daemons) => {
                daemons.iter().for_each(|daemon| output.push_str(&daemon.to_string()))
            }
            Response::Marks(rows) => self.marks.extend(rows),
            Response::Text(text) => output.push_str(&text),
            Response::Done => self.end(output),
            Response::Failed(_) => {}
        }
    }

    fn head_connections(&mut self, output: &mut String) -> bool {
        let engine_data = matches!(self.command, Command::List { options, .. } if options.engine_data);
        if !std::mem::replace(&mut self.headed, true) {
            output.push_str(connection_header(engine_data));
        }
        engine_data
    }

    fn end(&mut self, output: &mut String) {
        match self.command {
            Command::Save { .. } => {
                sort_services(&mut self.services);
                self.services
                    .iter()
                    .for_each(|service| output.push_str(&save_service(service, &self.labels)));
                output.push_str(&marks::save(&self.marks));
            }
            Command::Mark(MarkCommand::List { place, options, .. }) => {
                output.push_str(&marks::table(&self.marks, place.is_none(), *options, self.names));
            }
            Command::Mark(MarkCommand::Save { place, counters, .. }) => {
                output.push_str(&marks::commands(&self.marks, place.is_none(), *counters));
            }
            Command::List { what: ListWhat::Connections, .. } => {
                self.head_connections(output);
            }
            Command::List { what: ListWhat::Services { service }, options } => {
                let ListOptions { columns, sort, .. } = *options;
                if sort {
                    sort_services(&mut self.services);
                }
                output.push_str(&services_header(service.is_none().then_some(self.table_size), columns));
                self.services
                    .iter()
                    .for_each(|row| output.push_str(&services_row(row, options, &self.labels)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
