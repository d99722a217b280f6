//! `uvs replay`: rules and frames, in the order of their moments.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::bench::{BEGINNING, Bench, Output, Terminal};
use super::capture::{Captured, Inputs, Sink};
use super::options::Options;
use super::script::{self, Action, Line};
use super::{MAX_SPAN, ReplayError};
use crate::control::adm::MAX_RULES;
use crate::control::command::Command;
use crate::control::grammar;
use crate::control::names::{Names, SystemNames};
use crate::director::{Capacity, DropReason, FrameCounts, Verdict};
use crate::types::Instant;

/// The options, or the files that they name, are no good: nothing has been done.
const NOT_STARTED: i32 = 2;
/// A rule or a listing was refused.
const REFUSED: i32 = 255;
/// A capture could not be read to its end, or what was to be written could not be.
const BROKEN: i32 = 1;

/// Runs a replay; returns the exit status: 0, 1 where a file could not be read to its end or written, 2 where nothing was
/// done because of what it was told, 255 where a rule was refused.
pub fn run(options: &Options, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    let names = SystemNames::new();
    match Replay::prepare(options, &names) {
        Ok(mut replay) => {
            replay.play(stdout, stderr);
            replay.finish(stdout, stderr)
        }
        Err(error) => {
            // Whoever does not read it does not want to know.
            let _ = writeln!(stderr, "uvs replay: {error}");
            NOT_STARTED
        }
    }
}

/// A replay in progress.
struct Replay<'a> {
    options: &'a Options,
    names: &'a dyn Names,
    bench: Bench,
    script: std::vec::IntoIter<Line>,
    shows: Vec<(String, Command)>,
    inputs: Inputs,
    out: Sink,
    host_out: Option<Sink>,
    /// The time of the first frame, in nanoseconds since 1970.
    origin: Instant,
    /// A rule or a listing was refused.
    refused: bool,
    /// What went wrong with files, each told once: a full disk would fill the screen.
    problems: BTreeSet<String>,
    frames_cut: u64,
    frames_too_long: u64,
}

impl<'a> Replay<'a> {
    /// Reads and opens everything; what is written is made last.
    fn prepare(options: &'a Options, names: &'a dyn Names) -> Result<Self, ReplayError> {
        let topology = options.topology()?;
        let script = read_rules(&options.rules, names)?;
        let shows = options.show.iter().map(|text| listing(text, names)).collect::<Result<_, _>>()?;
        let inputs = Inputs::open(&options.inputs, &topology)?;
        let connections = options.connections;
        let capacity = Capacity { connections, ..Capacity::default() };
        let bench =
            Bench::new(topology, capacity).map_err(|source| ReplayError::Memory { connections, source })?;
        let read = inputs.paths().chain([options.rules.as_path()]).collect::<Vec<_>>();
        let create = |path: &Path, others: &[&Path]| {
            if others.iter().any(|other| is_same(path, other)) {
                return Err(ReplayError::SameFile(path.to_owned()));
            }
            Sink::create(path, bench.topology())
                .map_err(|source| ReplayError::Output { path: path.to_owned(), source })
        };
        let out = create(&options.out, &read)?;
        let all = [&read[..], &[options.out.as_path()]].concat();
        let host_out = options.host_out.as_deref().map(|path| create(path, &all)).transpose()?;
        Ok(Self {
            options,
            names,
            script: script.into_iter(),
            shows,
            origin: inputs.next_time().unwrap_or(Instant::ZERO),
            bench,
            inputs,
            out,
            host_out,
            refused: false,
            problems: BTreeSet::new(),
            frames_cut: 0,
            frames_too_long: 0,
        })
    }

    /// Does everything, in the order of the moments; rules come before frames of the same moment.
    fn play(&mut self, stdout: &mut dyn Write, stderr: &mut dyn Write) {
        loop {
            let frame = self.inputs.next_time().map(|time| self.moment(time));
            let line = self.script.as_slice().first().map(|line| BEGINNING + line.at.unwrap_or_default());
            match (line, frame) {
                (Some(line), frame) if frame.is_none_or(|frame| line <= frame) => {
                    self.let_pass(line, stderr);
                    if let Some(line) = self.script.next() {
                        self.execute(line, stdout, stderr);
                    }
                }
                (_, Some(_)) => self.next_frame(stderr),
                (_, None) => break,
            }
        }
        if let Some(until) = self.options.until {
            let until = BEGINNING + until.0;
            if until < self.bench.now() {
                let now = self.bench.elapsed();
                let _ = writeln!(stderr, "warning: --until is before the end, {now} after the first frame");
            }
            self.let_pass(until, stderr);
        }
        self.warn(stderr);
    }

    /// A capture's time as the director has it.
    fn moment(&self, time: Instant) -> Instant {
        BEGINNING + time.since(self.origin)
    }

    fn let_pass(&mut self, until: Instant, stderr: &mut dyn Write) {
        let outputs = self.bench.advance(until);
        self.write(&outputs, stderr);
    }

    fn execute(&mut self, line: Line, stdout: &mut dyn Write, stderr: &mut dyn Write) {
        let place = line.place();
        let refused = match line.action {
            Action::Command(command) => {
                let terminal = Terminal { names: self.names, stdout, stderr };
                self.bench.execute(Some(place), command, terminal) != 0
            }
            Action::Set { name, value } => {
                let refusal = self.bench.set(&name, &value).err();
                if let Some(error) = &refusal {
                    let _ = writeln!(stderr, "{place}\n{error}");
                }
                refusal.is_some()
            }
        };
        self.refused |= refused;
    }

    fn next_frame(&mut self, stderr: &mut dyn Write) {
        self.warn(stderr);
        let (frame, rest) = self.inputs.take(self.bench.topology());
        if let Some(frame) = frame {
            self.feed(&frame, stderr);
        }
        if let Err(error) = rest {
            self.problem(error.to_string(), stderr);
        }
    }

    fn feed(&mut self, frame: &Captured, stderr: &mut dyn Write) {
        if frame.time.since(self.origin) > MAX_SPAN {
            let days = MAX_SPAN.as_secs() / 86_400;
            self.problem(format!("frames more than {days} days after the first are left out"), stderr);
            return;
        }
        self.frames_cut += u64::from(frame.is_cut);
        match self.bench.feed(frame.port, &frame.bytes, self.moment(frame.time)) {
            Ok(outputs) => self.write(&outputs, stderr),
            Err(_) => self.frames_too_long += 1,
        }
    }

    fn write(&mut self, outputs: &[Output], stderr: &mut dyn Write) {
        for output in outputs {
            let time = self.origin + output.time.since(BEGINNING);
            let written = match (output.verdict, &mut self.host_out) {
                (Verdict::Transmit(port) | Verdict::Reply(port), _) => {
                    self.out.write(port, time, &output.bytes)
                }
                (Verdict::ToHost, Some(host)) => host.write(output.arrival, time, &output.bytes),
                _ => Ok(()),
            };
            if let Err(error) = written {
                self.problem(format!("a frame cannot be written: {error}"), stderr);
            }
        }
    }

    fn problem(&mut self, what: String, stderr: &mut dyn Write) {
        if !self.problems.contains(&what) {
            let _ = writeln!(stderr, "uvs replay: {what}");
            self.problems.insert(what);
        }
    }

    fn warn(&mut self, stderr: &mut dyn Write) {
        for warning in self.bench.warnings() {
            let _ = writeln!(stderr, "warning: {warning}");
        }
    }

    /// Prints the listings and what became of the frames, and closes the files.
    fn finish(mut self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
        for (text, command) in std::mem::take(&mut self.shows) {
            let terminal = Terminal { names: self.names, stdout: &mut *stdout, stderr: &mut *stderr };
            self.refused |= self.bench.execute(Some(format!("--show '{text}'")), command, terminal) != 0;
        }
        for (path, frames, names) in self.inputs.left_out() {
            let names = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let path = path.display();
            let _ = writeln!(
                stderr,
                "warning: {path}: {frames} frames of {names} are left out: no --interface is called so"
            );
        }
        let mut summary = summary(&self.bench.frame_counts());
        for (count, text) in [
            (self.frames_cut, "frames cut short by the capture"),
            (self.frames_too_long, "frames too long for a director, left out"),
        ] {
            if count > 0 {
                let _ = writeln!(summary, "{count:>12} {text}");
            }
        }
        let _ = stdout.write_all(summary.as_bytes()).and_then(|()| stdout.flush());
        self.close(stderr)
    }

    /// Closes the files that were written; returns the exit status.
    fn close(mut self, stderr: &mut dyn Write) -> i32 {
        let mut closed = vec![(&self.options.out, self.out.finish())];
        let host_out = self.options.host_out.as_ref().zip(self.host_out.take());
        closed.extend(host_out.map(|(path, sink)| (path, sink.finish())));
        for (path, result) in closed {
            if let Err(error) = result {
                let what = format!("{}: {error}", path.display());
                let _ = writeln!(stderr, "uvs replay: {what}");
                self.problems.insert(what);
            }
        }
        match (self.problems.is_empty(), self.refused) {
            (false, _) => BROKEN,
            (true, true) => REFUSED,
            (true, false) => 0,
        }
    }
}

/// Frames by verdict, and of the reasons to drop one, those there were.
fn summary(counts: &FrameCounts) -> String {
    let mut text = String::new();
    for (count, name) in [
        (counts.received, "frames received"),
        (counts.released, "released"),
        (counts.held, "held"),
        (counts.transmitted, "transmit"),
        (counts.replied, "reply"),
        (counts.to_host, "to-host"),
        (counts.dropped.iter().sum(), "drop"),
    ] {
        let _ = writeln!(text, "{count:>12} {name}");
    }
    for reason in DropReason::ALL {
        let count = counts.dropped_for(*reason);
        if count > 0 {
            let _ = writeln!(text, "{count:>12}   {}", reason.name());
        }
    }
    text
}

fn read_rules(path: &Path, names: &dyn Names) -> Result<Vec<Line>, ReplayError> {
    let failed = |source| ReplayError::Rules { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let length = file.take(MAX_RULES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if length as u64 > MAX_RULES {
        return Err(failed(std::io::Error::other(format!("longer than {} MiB", MAX_RULES >> 20))));
    }
    script::read(&String::from_utf8_lossy(&bytes), names)
        .map_err(|bad| ReplayError::Line { path: path.to_owned(), bad: Box::new(bad) })
}

fn listing(text: &str, names: &dyn Names) -> Result<(String, Command), ReplayError> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    match grammar::parse(&words, names) {
        Ok(command @ (Command::List { .. } | Command::Save { .. })) => Ok((text.to_owned(), command)),
        Ok(_) => Err(ReplayError::NoListing(text.to_owned())),
        Err(error) => Err(ReplayError::Show(text.to_owned(), error)),
    }
}

/// Whether both paths lead to one file, of which there is but one content.
fn is_same(path: &Path, other: &Path) -> bool {
    match (fs::metadata(path), fs::metadata(other)) {
        (Ok(path), Ok(other)) => path.is_file() && (path.dev(), path.ino()) == (other.dev(), other.ino()),
        // A file that is not there yet is nobody else's.
        _ => false,
    }
}
