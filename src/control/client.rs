//! A program's end of the control socket.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Request, Response, read_message, write_message};

/// Where directors listen unless told otherwise.
pub const DEFAULT_PATH: &str = "/run/uvs/control";
/// The variable of the environment that says otherwise.
pub const PATH_VARIABLE: &str = "UVS_CONTROL";
/// How long a director may take for the next part of an answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Where the director listens, by the environment.
pub fn control_path() -> PathBuf {
    match std::env::var_os(PATH_VARIABLE) {
        Some(path) if !path.is_empty() => path.into(),
        _ => DEFAULT_PATH.into(),
    }
}

/// A connection to a director.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the director that listens at `path`.
    ///
    /// # Errors
    /// When there is none, or it is somebody else's.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends a request and hands each part of the answer to `take`, to its end.
    ///
    /// # Errors
    /// When the director goes away or says nothing for [`ANSWER_TIME`]; those of `take`.
    pub fn call(
        &mut self,
        request: &Request,
        mut take: impl FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        let sent = write_message(self.stream.get_mut(), request);
        let mut missing = request.answers();
        while missing > 0 {
            let response = match read_message::<Response>(&mut self.stream) {
                Ok(Some(response)) => response,
                // A director that turns a program away says why before it closes; only if it did not, the failure to
                // send is all there is to tell.
                Ok(None) => return Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(sent.err().unwrap_or(error)),
            };
            missing -= usize::from(response.ends());
            take(response)?;
        }
        // Every answer came: a director that turns a program away does not read what it sends first.
        Ok(())
    }
}

/// Tells a person that a director cannot be reached, and what to do about it.
///
/// # Errors
/// Those of `to`.
pub fn explain(error: &io::Error, path: &Path, to: &mut dyn Write) -> io::Result<()> {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            writeln!(to, "Can't reach the director at {path}: Permission denied (you must be root)")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            writeln!(to, "Can't reach the director at {path}: {error}")?;
            writeln!(to, "Is the director running? Start it with 'uvs run', or set {PATH_VARIABLE}.")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            writeln!(to, "The director at {path} closed the connection before it had answered")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            writeln!(to, "The director at {path} did not answer within {} s", ANSWER_TIME.as_secs())
        }
        _ => writeln!(to, "Can't talk to the director at {path}: {error}"),
    }
}

/// `uvs set`, `uvs get` and `uvs stats`: sends `request` to the director at `path`, prints its answer, and returns the
/// exit status: 0, 1 when the director refused, 2 when it was not reached.
pub fn run(request: &Request, path: &Path, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    let (mut text, mut refusals) = (String::new(), String::new());
    let outcome = Client::connect(path).and_then(|mut client| {
        client.call(request, |response| {
            match response {
                Response::Text(part) => text.push_str(&part),
                Response::Failed(error) => refusals.push_str(&format!("{error}\n")),
                _ => {}
            }
            Ok(())
        })
    });
    // Whoever does not read what is printed does not care how this ends.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    let _ = stderr.write_all(refusals.as_bytes());
    match outcome {
        Ok(()) => i32::from(!refusals.is_empty()),
        Err(error) => {
            let _ = explain(&error, path, stderr);
            2
        }
    }
}

/// `uvs set NAME VALUE`; see [`run`].
pub fn set(name: &str, value: &str, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    run(&Request::Set { name: name.to_owned(), value: value.to_owned() }, &control_path(), stdout, stderr)
}

/// `uvs get [NAME]`; see [`run`].
pub fn get(name: Option<&str>, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    run(&Request::Get { name: name.map(str::to_owned) }, &control_path(), stdout, stderr)
}

/// `uvs stats [--json]`; see [`run`].
pub fn stats(json: bool, stdout: &mut dyn Write, stderr: &mut dyn Write) -> i32 {
    run(&Request::Stats { json }, &control_path(), stdout, stderr)
}
