//! The director's end of the control socket.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use super::error::ControlError;
use super::protocol::{MAX_COMMANDS, ReplySink, Request, Response, read_message, write_message};

/// How many programs may be connected at once.
pub const MAX_CLIENTS: usize = 32;
/// How long a request may take to arrive, and how long a program may be silent between two.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a program may take to read what is sent to it.
pub const REPLY_TIME: Duration = Duration::from_secs(60);

/// Answers requests.
pub trait Handler: Send + Sync {
    /// Answers one request: any number of responses, and for each command of [`Request::Commands`], and for any other
    /// request once, one that [ends](Response::ends) it.
    ///
    /// # Errors
    /// Those of `reply`.
    fn handle(&self, request: Request, reply: &mut dyn ReplySink) -> io::Result<()>;
}

/// What happened at a control socket since it was bound.
#[derive(Default, Debug)]
pub struct ServerCounters {
    /// Programs that connected.
    pub accepted: AtomicU64,
    /// Of these, turned away because [`MAX_CLIENTS`] were connected.
    pub refused: AtomicU64,
    /// Of these, closed for sending what is no request.
    pub rubbish: AtomicU64,
    /// Of these, closed for silence, or for not reading.
    pub timeouts: AtomicU64,
}

/// A control socket that is bound but not served yet.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    /// Locked as long as the socket is this director's.
    lock: File,
    /// [`REQUEST_TIME`], but for tests.
    request_time: Duration,
}

impl ControlServer {
    /// Makes the socket at `path`, for this user only, and the folder it is in. The socket of a director that died is
    /// replaced.
    ///
    /// # Errors
    /// Of kind `AddrInUse` when another director listens there; else those of the file system.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(beside(path, "lock"))?;
        // The lock goes with the process that holds it, however that ends: whoever gets it is the only one.
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            let text = format!("another director listens on {}", path.display());
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => io::Error::new(io::ErrorKind::AddrInUse, text),
                error => error.into(),
            });
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let text = format!("{} exists and is no socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            _ => {}
        }
        // Under its own name the socket is never there with other permissions.
        let fresh = beside(path, "new");
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(Self { listener, path: path.to_owned(), lock, request_time: REQUEST_TIME })
    }

    /// Gives the socket up, unserved.
    pub fn discard(self) {
        // Whatever keeps it from being removed, the next director replaces it.
        let _ = fs::remove_file(&self.path);
    }

    /// Serves it in threads of its own, until the answer is dropped.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn serve(self, handler: Arc<dyn Handler>) -> io::Result<RunningServer> {
        let shared = Arc::new(Shared {
            handler,
            counters: ServerCounters::default(),
            clients: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            request_time: self.request_time,
        });
        let Self { listener, path, lock, .. } = self;
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("uvs-control".to_owned())
            .spawn(move || accept(&listener, &for_thread))?;
        Ok(RunningServer { shared, path, thread: Some(thread), _lock: lock })
    }
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// A control socket that is served. Dropped, it goes away; programs that are connected are answered to their end.
#[derive(Debug)]
pub struct RunningServer {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    _lock: File,
}

impl RunningServer {
    /// What happened so far.
    pub fn counters(&self) -> &ServerCounters {
        &self.shared.counters
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Accepting waits for somebody; when nobody can come any more, waiting for the thread would never end.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

struct Shared {
    handler: Arc<dyn Handler>,
    counters: ServerCounters,
    clients: AtomicUsize,
    stop: AtomicBool,
    request_time: Duration,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("counters", &self.counters)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    // After an error that stays, as with too many open files, trying again at once would only burn the processor.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let stream = listener.accept();
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok((stream, _)) => welcome(stream, shared),
            Err(error) => {
                warn!(%error, "nobody can connect to the control socket");
                thread::sleep(PAUSE);
            }
        }
    }
}

fn welcome(stream: UnixStream, shared: &Arc<Shared>) {
    shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
    // Only this thread adds.
    if shared.clients.load(Ordering::Acquire) >= MAX_CLIENTS {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        refuse(&stream, "too many programs are connected");
        return;
    }
    shared.clients.fetch_add(1, Ordering::AcqRel);
    let place = Place(Arc::clone(shared));
    let spawned = thread::Builder::new().name("uvs-client".to_owned()).spawn(move || {
        let place = place;
        converse(&stream, &place.0);
    });
    if let Err(error) = spawned {
        warn!(%error, "no thread for a control client");
    }
}

/// One of the places for clients, free again when dropped.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells a program why it gets no answer. It may be gone or not read: nothing hangs on it.
fn refuse(stream: &UnixStream, why: &str) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = write_message(&mut &*stream, &Response::Failed(ControlError::Refused(why.to_owned())));
}

fn converse(stream: &UnixStream, shared: &Shared) {
    if stream.set_write_timeout(Some(REPLY_TIME)).is_err() {
        return;
    }
    while !shared.stop.load(Ordering::Acquire) {
        let request =
            match read_message::<Request>(&mut Timed { stream, end: Instant::now() + shared.request_time }) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    count(&error, shared);
                    refuse(stream, &error.to_string());
                    return;
                }
            };
        if request.answers() > MAX_COMMANDS {
            shared.counters.rubbish.fetch_add(1, Ordering::Relaxed);
            refuse(stream, "too many commands");
            return;
        }
        if let Err(error) = shared.handler.handle(request, &mut Reply(stream)) {
            count(&error, shared);
            return;
        }
    }
}

fn count(error: &io::Error, shared: &Shared) {
    let counter = match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => &shared.counters.timeouts,
        io::ErrorKind::InvalidData => &shared.counters.rubbish,
        // The program has gone.
        _ => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Reads until a moment, however slowly the bytes come.
struct Timed<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut &*self.stream).read(buffer)
    }
}

struct Reply<'a>(&'a UnixStream);

impl ReplySink for Reply<'_> {
    fn send(&mut self, response: Response) -> io::Result<()> {
        let mut stream = self.0;
        write_message(&mut stream, &response)?;
        stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::control::client::Client;
    use crate::control::command::Command;

    /// A folder of this test's own, gone afterwards.
    pub(super) struct Folder(pub(super) PathBuf);

    impl Folder {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("uvs-server-{}-{number}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    struct Yes;

    impl Handler for Yes {
        fn handle(&self, request: Request, reply: &mut dyn ReplySink) -> io::Result<()> {
            for _ in 0..request.answers() {
                reply.end(Ok(()))?;
            }
            Ok(())
        }
    }

    fn call(client: &mut Client) -> io::Result<Vec<Response>> {
        let mut answer = Vec::new();
        client.call(&Request::Commands(vec![Command::Flush]), |response| {
            answer.push(response);
            Ok(())
        })?;
        Ok(answer)
    }

    #[test]
    fn one_director_at_a_time_listens_and_the_dead_are_replaced() {
        let folder = Folder::new();
        let path = folder.0.join("deeper/control");
        // What a director that was killed leaves behind.
        fs::create_dir(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let running = ControlServer::bind(&path).unwrap().serve(Arc::new(Yes)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = ControlServer::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with("another director listens on "), "{error}");
        assert_eq!(call(&mut Client::connect(&path).unwrap()).unwrap(), [Response::Done]);
        drop(running);
        assert!(!path.exists());
        assert!(Client::connect(&path).is_err());
        ControlServer::bind(&path).unwrap();

        let file = folder.0.join("file");
        fs::write(&file, "precious").unwrap();
        assert!(ControlServer::bind(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn rubbish_and_silence_are_closed_and_counted_and_hold_nobody_up() {
        let folder = Folder::new();
        let path = folder.0.join("control");
        let mut server = ControlServer::bind(&path).unwrap();
        server.request_time = Duration::from_millis(200);
        let running = server.serve(Arc::new(Yes)).unwrap();
        // To the end: closed by the director.
        let drain = |mut stream: &UnixStream| {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).map(|_| rest)
        };
        let silent = UnixStream::connect(&path).unwrap();
        let slow = UnixStream::connect(&path).unwrap();
        (&mut &slow).write_all(b"\0\0\0").unwrap();
        let rubbish = UnixStream::connect(&path).unwrap();
        (&mut &rubbish).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(call(&mut Client::connect(&path).unwrap()).unwrap(), [Response::Done]);
        // What was not read yet makes the close a reset.
        let _ = drain(&rubbish);
        drain(&silent).unwrap();
        drain(&slow).unwrap();
        let greedy = Request::Commands(vec![Command::Flush; MAX_COMMANDS + 1]);
        let mut answer = Vec::new();
        let outcome = Client::connect(&path).unwrap().call(&greedy, |response| {
            answer.push(response);
            Ok(())
        });
        assert!(outcome.is_err());
        assert_eq!(answer, [Response::Failed(ControlError::Refused("too many commands".to_owned()))]);
        let counters = running.counters();
        assert_eq!(counters.rubbish.load(Ordering::Relaxed), 2);
        assert_eq!(counters.timeouts.load(Ordering::Relaxed), 2);
        assert_eq!(counters.accepted.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn too_many_programs_are_turned_away_until_one_leaves() {
        let folder = Folder::new();
        let path = folder.0.join("control");
        let running = ControlServer::bind(&path).unwrap().serve(Arc::new(Yes)).unwrap();
        let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| Client::connect(&path).unwrap()).collect();
        for client in &mut clients {
            call(client).unwrap();
        }
        let refused = Response::Failed(ControlError::Refused("too many programs are connected".to_owned()));
        assert_eq!(call(&mut Client::connect(&path).unwrap()).unwrap(), [refused]);
        assert_eq!(running.counters().refused.load(Ordering::Relaxed), 1);
        clients.pop();
        // The place is free once the director has noticed.
        let end = Instant::now() + Duration::from_secs(10);
        while call(&mut Client::connect(&path).unwrap()).unwrap() != [Response::Done] {
            assert!(Instant::now() < end, "the place is never free");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
