use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::control::command::ServiceSpec;
use crate::control::error::ControlError;
use crate::control::listing::{ConnectionRow, Counters, Rates, ServerRow, Timeouts};
use crate::control::names::tests::FixedNames;
use crate::control::protocol::ReplySink;
use crate::control::server::{ControlServer, Handler, RunningServer};
use crate::types::{Protocol, ServiceKey};

/// A director in small: services and servers in a list, in the kernel's order of servers.
#[derive(Default)]
struct Small {
    services: Mutex<Vec<ServiceRow>>,
    requests: AtomicU32,
}

impl Small {
    fn execute(&self, command: Command, reply: &mut dyn ReplySink) -> io::Result<Result<(), ControlError>> {
        let mut services = self.services.lock().unwrap();
        let at = |services: &[ServiceRow], key: ServiceKey| services.iter().position(|row| row.key == key);
        Ok(match command {
            Command::AddService { key, spec } => match at(&services, key) {
                Some(_) => Err(ControlError::ServiceExists),
                None => {
                    services.push(row(key, spec));
                    Ok(())
                }
            },
            Command::AddServer { key, address, port, spec } => match at(&services, key) {
                None => Err(ControlError::ServiceNotDefined),
                Some(at) => {
                    services[at].servers.insert(0, ServerRow { address, port, spec, ..server() });
                    Ok(())
                }
            },
            Command::Flush => {
                services.clear();
                Ok(())
            }
            Command::List { what: ListWhat::Services { service: Some(key) }, .. }
                if at(&services, key).is_none() =>
            {
                Err(ControlError::NoSuchService)
            }
            Command::List { what: ListWhat::Services { service }, .. } => {
                reply.send(Response::Table { size: 4096 })?;
                for row in services.iter().filter(|row| service.is_none_or(|key| key == row.key)) {
                    reply.service(row.clone())?;
                }
                Ok(())
            }
            Command::Save { .. } => {
                for row in services.iter() {
                    reply.service(row.clone())?;
                }
                Ok(())
            }
            Command::List { what: ListWhat::Connections, .. } => {
                reply.connections((0..100_000).map(connection))?;
                Ok(())
            }
            Command::List { what: ListWhat::Timeouts, .. } => {
                reply.send(Response::Timeouts(Timeouts { tcp: 900, tcp_fin: 120, udp: 300 }))?;
                Ok(())
            }
            Command::List { what: ListWhat::Daemons, .. } => {
                reply.send(Response::Daemons(vec![]))?;
                Ok(())
            }
            _ => Err(ControlError::NotSupported("this".to_owned())),
        })
    }
}

impl Handler for Small {
    fn handle(&self, request: Request, reply: &mut dyn ReplySink) -> io::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match request {
            Request::Commands(commands) => {
                for command in commands {
                    let result = self.execute(command, reply)?;
                    reply.end(result)?;
                }
                Ok(())
            }
            Request::Get { name } => {
                reply.text(&format!("{name:?}\n"))?;
                reply.end(Ok(()))
            }
            _ => reply.end(Err(ControlError::NoSuchSetting("x".to_owned()))),
        }
    }
}

fn row(key: ServiceKey, spec: ServiceSpec) -> ServiceRow {
    ServiceRow { key, spec, counters: Counters::default(), rates: Rates::default(), servers: vec![] }
}

fn server() -> ServerRow {
    ServerRow {
        address: [0, 0, 0, 0].into(),
        port: 0,
        spec: Default::default(),
        active: 0,
        inactive: 0,
        persistent: 0,
        counters: Counters::default(),
        rates: Rates::default(),
    }
}

fn connection(number: u32) -> ConnectionRow {
    let [_, a, b, c] = number.to_be_bytes();
    ConnectionRow {
        protocol: Some(Protocol::Tcp),
        expires: 899,
        state: "ESTABLISHED".to_owned(),
        client: ([10, a, b, c].into(), 1024),
        service: ([10, 88, 0, 100].into(), 80),
        server: ([10, 88, 2, 11].into(), 80),
        engine: None,
    }
}

struct Bench {
    folder: PathBuf,
    director: Arc<Small>,
    _server: RunningServer,
}

impl Bench {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("uvs-adm-{}-{number}", std::process::id()));
        let director = Arc::new(Small::default());
        let server = ControlServer::bind(&folder.join("control")).unwrap();
        let server = server.serve(Arc::<Small>::clone(&director)).unwrap();
        Self { folder, director, _server: server }
    }

    /// Exit status, output, messages.
    fn run(&self, line: &str, input: &str) -> (i32, String, String) {
        run(&self.folder.join("control"), line, input)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn run(path: &Path, line: &str, input: &str) -> (i32, String, String) {
    let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let names = FixedNames::new(&[]);
    let director = &mut Remote::new(path);
    let mut program = Program { names: &names, director, stdout: &mut stdout, stderr: &mut stderr };
    let status = program.run(&args, &mut input.as_bytes());
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn names_choose_the_program() {
    for (name, expected) in [
        ("/sbin/ipvsadm", Some(Invocation::Adm)),
        ("ipvsadm-save", Some(Invocation::Save)),
        ("./ipvsadm-restore", Some(Invocation::Restore)),
        ("/usr/bin/uvs", None),
        ("", None),
    ] {
        assert_eq!(invocation(name.as_ref()), expected, "{name}");
    }
}

#[test]
fn the_recorded_restores_end_as_recorded() {
    // From errors.txt, with what names the lines.
    let bench = Bench::new();
    assert_eq!(
        bench.run("ipvsadm -R", "bad line\n"),
        (
            255,
            String::new(),
            "line 1: bad line\nTry `ipvsadm -h' or 'ipvsadm --help' for more information.\n".to_owned()
        )
    );
    let rules = "-A -t 10.88.7.20:80 -s rr\n-A -t 10.88.7.20:80 -s rr\n-A -t 10.88.7.21:80 -s rr\n";
    let errors = "line 2: -A -t 10.88.7.20:80 -s rr\nService already exists\n";
    assert_eq!(bench.run("ipvsadm -R", rules), (0, String::new(), errors.to_owned()));
    let listing = "Prot LocalAddress:Port Scheduler Flags\n  \
                   -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
                   TCP  10.88.7.21:80 rr\n";
    assert_eq!(bench.run("ipvsadm -Ln -t 10.88.7.21:80", ""), (0, listing.to_owned(), String::new()));
    assert_eq!(
        bench.run("ipvsadm -Ln -t 10.88.0.199:80", ""),
        (1, String::new(), "No such service\n".to_owned())
    );
}

#[test]
fn a_line_that_is_not_understood_does_not_stop_the_others_and_is_not_forgotten() {
    let bench = Bench::new();
    let rules = "# rules\n-A -f 1\n-A -f 1 -w 3\n\n-a -f 9 -r 10.0.0.1\n-A -f 2\n-Ln --timeout\n";
    let (status, output, errors) = bench.run("ipvsadm -R", rules);
    assert_eq!(status, 2);
    assert_eq!(
        errors,
        "line 3: -A -f 1 -w 3\nIllegal 'weight' option with the 'add-service' command\n\
         line 5: -a -f 9 -r 10.0.0.1\nService not defined\n"
    );
    assert_eq!(output, "Timeout (tcp tcpfin udp): 900 120 300\n");
    assert_eq!(bench.director.services.lock().unwrap().len(), 2);
    // The last line's status, as long as each was understood.
    assert_eq!(bench.run("ipvsadm -R", "-A -f 3\n-A -f 1\n").0, 255);
    assert_eq!(bench.run("ipvsadm -R", "-A -f 1\n-A -f 4\n").0, 0);
    assert_eq!(bench.run("ipvsadm -R", ""), (0, String::new(), String::new()));
}

#[test]
fn saved_rules_restore_to_the_same_and_fast() {
    let bench = Bench::new();
    let rules: String = (0..1000)
        .map(|n| {
            let vip = format!("10.1.{}.{}:80", n / 250, n % 250);
            format!("-A -t {vip} -s wrr -p 60\n-a -t {vip} -r 10.2.0.1:80 -g -w 1\n-a -t {vip} -r 10.2.0.2:80 -g -w 2 -x 9\n")
        })
        .collect();
    let start = Instant::now();
    assert_eq!(bench.run("ipvsadm -R", &rules), (0, String::new(), String::new()));
    // Below a second on a machine with nothing else to do; this test's may be busy.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(bench.director.requests.load(Ordering::Relaxed), 3);
    let saved = bench.run("ipvsadm-save -n", "").1;
    assert_eq!(saved, rules);
    assert_eq!(bench.run("ipvsadm-restore", &saved), (0, String::new(), String::new()));
    assert_eq!(bench.run("uvs-adm -S -n", "").1, rules);
    assert_eq!(bench.run("ipvsadm-restore", "# nothing\n"), (0, String::new(), String::new()));
    assert_eq!(bench.run("ipvsadm-save", "").1, "");
    assert_eq!(bench.run("ipvsadm-save -x", "").0, 1);
}

#[test]
fn long_listings_arrive_whole() {
    let bench = Bench::new();
    let mut many = row(
        ServiceKey::Mark { family: crate::types::Family::V4, mark: 1 },
        ServiceSpec::new(crate::types::Family::V4),
    );
    many.servers = (0..2000_u32)
        .map(|n| ServerRow { address: (0x0a00_0000 + n).to_be_bytes().into(), ..server() })
        .collect();
    bench.director.services.lock().unwrap().push(many);
    let (status, output, _) = bench.run("ipvsadm -Ln", "");
    assert_eq!((status, output.lines().count()), (0, 4 + 2000));
    assert_eq!(
        output.lines().nth(2003),
        Some("  -> 10.0.7.207:0                 Route   1      0          0         ")
    );
    let (status, output, _) = bench.run("ipvsadm -Lnc", "");
    assert_eq!((status, output.lines().count()), (0, 2 + 100_000));
    assert_eq!(
        output.lines().last(),
        Some("TCP 14:59  ESTABLISHED 10.1.134.159:1024  10.88.0.100:80     10.88.2.11:80")
    );
}

#[test]
fn errors_of_words_need_no_director_and_others_say_what_to_do() {
    let nowhere = Path::new("/nonexistent/uvs/control");
    assert_eq!(
        run(nowhere, "ipvsadm -Q", ""),
        (255, String::new(), "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n".to_owned())
    );
    assert_eq!(run(nowhere, "ipvsadm -h", "").0, 0);
    let (status, output, errors) = run(nowhere, "ipvsadm -Ln", "");
    assert_eq!((status, &output[..]), (2, ""));
    assert!(errors.contains("/nonexistent/uvs/control"), "{errors}");
    assert!(errors.contains("'uvs run'") && errors.contains("UVS_CONTROL"), "{errors}");
    assert_eq!(run(nowhere, "ipvsadm-restore", "-C\n").0, 2);
    let (status, _, errors) = run(nowhere, "ipvsadm –C", "");
    assert_eq!(status, 2);
    assert!(errors.starts_with("unexpected argument –C (it starts with '–', not with a hyphen: write -C)\n"));
}

#[test]
fn too_many_rules_change_nothing() {
    let bench = Bench::new();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let names = FixedNames::new(&[]);
    let path = bench.folder.join("control");
    let director = &mut Remote::new(&path);
    let mut program = Program { names: &names, director, stdout: &mut stdout, stderr: &mut stderr };
    let mut endless = io::Read::chain(&b"-C\n"[..], io::repeat(b'\n'));
    assert_eq!(program.run(&["ipvsadm".into(), "-R".into()], &mut endless), 2);
    assert_eq!(bench.director.requests.load(Ordering::Relaxed), 0);
}

#[test]
fn settings_are_read_and_refused() {
    let bench = Bench::new();
    let path = bench.folder.join("control");
    let call = |request| {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = crate::control::client::run(&request, &path, &mut stdout, &mut stderr);
        (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    assert_eq!(call(Request::Get { name: None }), (0, "None\n".to_owned(), String::new()));
    let set = Request::Set { name: "x".to_owned(), value: "1".to_owned() };
    assert_eq!(call(set), (1, String::new(), "no setting is called 'x'\n".to_owned()));
}
