//! The director as a process, and the commands that configure it.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::LabError;
use super::namespace::Namespace;
use super::place::Place;

/// Where `uvs adm` finds the director that it is to talk to.
pub(super) const CONTROL_VARIABLE: &str = "UVS_CONTROL";
/// How long the director may take until its control socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the director may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// Lines of the director's log that an error shows.
const LOG_LINES: usize = 12;

/// A running director. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Director<'a> {
    program: &'a Path,
    namespace: &'a Namespace,
    child: Child,
    control: PathBuf,
    log: PathBuf,
    answers: PathBuf,
}

impl<'a> Director<'a> {
    /// Starts `program run --interface ... --control ... MORE` inside `namespace`, and waits until its control
    /// socket takes connections.
    pub(super) fn start(
        program: &'a Path,
        namespace: &'a Namespace,
        place: &Place,
        interface: &str,
        more: &[String],
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Self, LabError> {
        let (control, log) = (place.file("control.sock"), place.file("director.log"));
        let output = File::create(&log).map_err(LabError::system("the director's log"))?;
        let errors = output.try_clone().map_err(LabError::system("the director's log"))?;
        let mut command = Command::new(program);
        command.args(["run", "--interface", interface, "--control"]).arg(&control).args(more);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A group of its own: Ctrl-C in the terminal is for the lab, which then ends the director.
        command.process_group(0);
        let child = namespace
            .spawn(&mut command)
            .map_err(LabError::system(format!("{} could not be started", program.display())))?;
        let answers = place.file("answer");
        let mut director = Self { program, namespace, child, control, log, answers };
        director.wait_until_ready(interrupted)?;
        Ok(director)
    }

    /// The path of its control socket.
    pub(super) fn control(&self) -> &Path {
        &self.control
    }

    /// The path of its log.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    fn wait_until_ready(&mut self, interrupted: &dyn Fn() -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.check_alive()?;
            match UnixStream::connect(&self.control) {
                Ok(_) => return Ok(()),
                Err(cause) if Instant::now() >= deadline => {
                    let seconds = START_TIMEOUT.as_secs();
                    let text =
                        format!("the director's control socket did not answer in {seconds} s ({cause})");
                    return Err(LabError::Director(self.with_log(text)));
                }
                Err(_) if interrupted() => return Err(LabError::Interrupted),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// An error where the process has ended.
    pub(super) fn check_alive(&mut self) -> Result<(), LabError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(LabError::Director(self.with_log(format!("the director ended by itself ({status})"))))
            }
            Err(cause) => Err(LabError::system("the director's process")(cause)),
        }
    }

    /// Runs `program ARGUMENTS` inside the director's namespace, as an operator there would, and gives what it
    /// printed.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<String, LabError> {
        let shown = format!("uvs {}", arguments.join(" "));
        let failed = |what: String| LabError::Director(self.with_log(what));
        // Into a file: a pipe that nobody empties would stop a long listing.
        let output = File::create(&self.answers).map_err(LabError::system(shown.as_str()))?;
        let errors = output.try_clone().map_err(LabError::system(shown.as_str()))?;
        let mut command = Command::new(self.program);
        command.args(arguments).env(CONTROL_VARIABLE, &self.control);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut child = self.namespace.spawn(&mut command).map_err(LabError::system(shown.as_str()))?;
        let status = wait(&mut child, COMMAND_TIMEOUT).map_err(LabError::system(shown.as_str()))?;
        let Some(status) = status else {
            kill(&mut child);
            return Err(failed(format!("'{shown}' did not end in {} s", COMMAND_TIMEOUT.as_secs())));
        };
        let answer = fs::read(&self.answers).map_err(LabError::system(shown.as_str()))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if status.success() {
            Ok(answer)
        } else {
            Err(failed(format!("'{shown}' failed ({status}): {}", answer.trim())))
        }
    }

    /// `text`, and the end of the director's log under it.
    fn with_log(&self, text: String) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        if end.is_empty() {
            return format!("{text}; its log is empty");
        }
        format!("{text}; the end of its log:\n    {}", end.join("\n    "))
    }
}

impl Drop for Director<'_> {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            // It cannot be another process: until it is waited for, its number is not given away.
            let _ = kill_process(pid, Signal::TERM);
        }
        if !matches!(wait(&mut self.child, STOP_TIMEOUT), Ok(Some(_))) {
            tracing::warn!("the director did not end in time, and is killed");
            kill(&mut self.child);
        }
    }
}

/// Waits until `child` ends; nothing where it has not by `timeout`.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Ends `child` at once.
fn kill(child: &mut Child) {
    // Both fail only where it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}
