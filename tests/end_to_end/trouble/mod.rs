//! What operators get wrong, machines do and senders make up: one table of what happens, of the message or counter that
//! says so, and of what it does to the director.

mod frames;
mod live;
mod machine;
mod start;

use live::Live;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Input {
    /// Frames arrive at a director, in this process.
    Frames(fn() -> Vec<Vec<u8>>),
    /// A director is started where none is, on these interfaces and with these options.
    Start(&'static [&'static str], &'static [&'static str]),
    /// The same on an interface that there is, by somebody who may do nothing special.
    StartWithoutPrivileges,
    /// A line of bash is run where there is no director.
    CommandForNobody(&'static str),
    /// A line of bash is run beside a running director.
    Command(&'static str),
    /// Bytes are written to a running director's control socket.
    Control(fn() -> Vec<u8>),
    /// A second director is started on a running one's interface, with its own files where it is given those.
    Second(Files),
    /// A service's only real server is at this address, once this line of bash was run; a client calls.
    CallTo(&'static str, &'static str),
    /// Something else befalls a running director.
    Befalls(fn(&Live<'_>)),
}

/// What two directors share beside an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Files {
    All,
    StateDirectory,
    None,
}

/// Who says so, and what.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// The program, with this exit status and these words.
    Says(i32, &'static [&'static str]),
    /// That another director, whose process number it is, has the interface.
    NamesTheFirst,
    /// The director, on the control socket.
    Answers(&'static str),
    /// A counter of dropped frames.
    Counts(&'static str),
    /// The director's log.
    Logs(&'static str),
    /// Nothing is wrong with it.
    Nothing,
}

/// What it does to the director.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// It does not start, and leaves nothing.
    NoStart,
    /// There was none.
    NoDirector,
    /// None: its rules stay, connections go on, new ones are served.
    GoesOn,
    /// New connections are refused, those that it knows go on.
    KnownGoOn,
    /// Its services are out of reach; it goes on answering commands.
    Answers,
}

use Effect::{Answers, GoesOn, KnownGoOn, NoDirector, NoStart};
use Files::{All, StateDirectory};
use Input::{
    Befalls, CallTo, Command, CommandForNobody, Control, Frames, Second, Start, StartWithoutPrivileges,
};
use Told::{Counts, Logs, NamesTheFirst, Nothing, Says};

/// `%` stands for the test's directory, `VIP` for the running director's virtual address.
#[rustfmt::skip]
const TABLE: &[(Input, Told, Effect)] = &[
    // Frames that are broken, or that cannot be forwarded.
    (Frames(frames::nothing),                     Counts("truncated-frame"),                              GoesOn),
    (Frames(frames::cut_in_the_link_header),      Counts("truncated-frame"),                              GoesOn),
    (Frames(frames::cut_in_the_tcp_header),       Counts("bad-ipv4-header"),                              GoesOn),
    (Frames(frames::another_ip_version),          Counts("bad-ipv4-header"),                              GoesOn),
    (Frames(frames::ip_length_beyond_the_frame),  Counts("bad-ipv4-header"),                              GoesOn),
    (Frames(frames::wrong_ip_checksum),           Counts("bad-ipv4-checksum"),                            GoesOn),
    (Frames(frames::ipv6_extension_headers_galore), Counts("bad-ipv6-header"),                            GoesOn),
    (Frames(frames::tcp_header_too_short),        Counts("bad-transport-header"),                         GoesOn),
    (Frames(frames::to_another_link_address),     Counts("foreign-link-address"),                         GoesOn),
    (Frames(frames::larger_than_the_way_out),     Counts("too-big"),                                      GoesOn),
    (Frames(frames::the_same_fragment_twice),     Counts("fragment-duplicate"),                           GoesOn),
    (Frames(frames::fragments_that_overlap),      Counts("fragment-overlap"),                             GoesOn),
    (Frames(frames::more_calls_than_answers),     Counts("no-real-server"),                               GoesOn),
    (Frames(frames::more_connections_than_fit),   Counts("connection-table-full"),                        KnownGoOn),

    // Directors that cannot start.
    (Start(&["eth7"], &[]),                       Says(1, &["'eth7'", "there are:", "eth0"]),             NoStart),
    (Start(&["eth0", "eth7"], &[]),               Says(1, &["'eth7'"]),                                   NoStart),
    (Start(&["eth0", "eth0"], &[]),               Says(1, &["'eth0'", "twice"]),                          NoStart),
    (Start(&["eth0"; 65], &[]),                   Says(1, &["65 interfaces", "at most 64"]),              NoStart),
    (Start(&["a-name-too-long-for-any"], &[]),    Says(1, &["a-name-too-long-for-any"]),                  NoStart),
    (Start(&[], &[]),                             Says(2, &["--interface"]),                              NoStart),
    (Start(&["eth0"], &["--rules", "%bad"]),      Says(1, &["/bad, line 2", "Scheduler"]),                NoStart),
    (Start(&["eth0"], &["--rules", "%slip"]),     Says(1, &["/slip, line 3", "912.168.0.1"]),             NoStart),
    (Start(&["eth0"], &["--rules", "%setting"]),  Says(1, &["/setting, line 1", "'no_such'"]),            NoStart),
    (Start(&["eth0"], &["--rules", "%missing"]),  Says(1, &["/missing", "No such file"]),                 NoStart),
    (Start(&["eth0"], &["--workers", "0"]),       Says(2, &["--workers", "0"]),                           NoStart),
    (Start(&["eth0"], &["--connections", "many"]), Says(2, &["--connections", "many"]),                   NoStart),
    (StartWithoutPrivileges,                      Says(1, &["not permitted", "root", "CAP_NET_ADMIN"]),   NoStart),

    // Commands that nobody answers.
    (CommandForNobody("ipvsadm -Ln"),             Says(2, &["%control", "Is the director running?"]),     NoDirector),
    (CommandForNobody("ipvsadm-save"),            Says(2, &["%control", "uvs run"]),                      NoDirector),
    (CommandForNobody("uvs stats"),               Says(2, &["%control", "uvs run"]),                      NoDirector),
    (CommandForNobody("uvs get"),                 Says(2, &["%control", "uvs run"]),                      NoDirector),
    (CommandForNobody("uvs set sloppy_tcp 1"),    Says(2, &["%control", "uvs run"]),                      NoDirector),

    // Commands that are wrong.
    (Command("ipvsadm -A -t 912.168.0.1:80"),     Says(2, &["912.168.0.1", "did you mean 192.168.0.1"]),  GoesOn),
    (Command("ipvsadm -A -t VIP:81 -s nonsense"), Says(255, &["Scheduler"]),                              GoesOn),
    (Command("ipvsadm -A -t VIP:8080 -s rr"),     Says(255, &["Service already exists"]),                 GoesOn),
    (Command("ipvsadm -D -t VIP:9999"),           Says(255, &["No such service"]),                        GoesOn),
    (Command("ipvsadm -d -t VIP:8080 -r 1.2.3.4"), Says(255, &["No such destination"]),                   GoesOn),
    (Command("ipvsadm -a -t VIP:8080 -r 1.2.3.4 -w x"), Says(2, &["weight"]),                             GoesOn),
    (Command("ipvsadm -C -g-w"),                  Says(2, &["-g-w"]),                                     GoesOn),
    (Command("ipvsadm -R < %refused"),            Says(255, &["line 2", "-s nonsense", "Scheduler"]),     GoesOn),
    (Command("uvs set no_such 1"),                Says(1, &["'no_such'"]),                                GoesOn),
    (Command("uvs set conn_reuse_mode many"),     Says(1, &["'many'", "conn_reuse_mode", "0 to 3"]),      GoesOn),
    (Command("uvs get no_such"),                  Says(1, &["'no_such'"]),                                GoesOn),
    (Command("uvs nonsense"),                     Says(2, &["nonsense"]),                                 GoesOn),

    // Whatever else talks to the control socket.
    (Control(live::nothing),                      Nothing,                                                GoesOn),
    (Control(live::a_web_request),                Told::Answers("a message of"),                          GoesOn),
    (Control(live::zeros),                        Told::Answers("EOF"),                                   GoesOn),
    (Control(live::an_announced_gigabyte),        Told::Answers("a message of"),                          GoesOn),
    (Control(live::no_json),                      Told::Answers("expected"),                              GoesOn),
    (Control(live::an_unknown_request),           Told::Answers("unknown variant"),                       GoesOn),
    (Control(live::half_a_request),               Told::Answers("failed to fill"),                        GoesOn),
    (Control(live::too_many_commands),            Told::Answers("too many commands"),                     GoesOn),
    (Befalls(live::silence_and_half_requests),    Nothing,                                                GoesOn),

    // Second directors.
    (Second(All),                                 Says(1, &["another director listens on", "%control"]),  GoesOn),
    (Second(StateDirectory),                      NamesTheFirst,                                          GoesOn),
    (Second(Files::None),                         NamesTheFirst,                                          GoesOn),

    // Real servers that cannot be reached, and interfaces that go.
    (CallTo("192.168.50.99", "true"),             Counts("neighbour-failed"),                             GoesOn),
    (CallTo("203.0.113.1", "ip route add unreachable 203.0.113.1"),
                                                  Counts("no-route"),                                     GoesOn),
    (CallTo("203.0.113.2", "ip link add other type bridge; ip link set other up; ip route add 203.0.113.2 dev other"),
                                                  Counts("foreign-interface"),                            GoesOn),
    (Befalls(machine::interface_goes_down_and_up), Logs("interface down"),                                GoesOn),
    (Befalls(machine::interface_vanishes),        Logs("the interface has gone"),                         Answers),
    (Befalls(machine::interface_is_made_anew),    Logs("made anew: restart the director"),                Answers),
];
