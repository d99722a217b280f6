//! Directors that cannot start, and commands without one.

use super::{Effect, Input, TABLE, Told};
use crate::support::director::{Director, PortType, assert_nothing_left};
use crate::support::{DEADLINE, Finished, Site, UVS, is_root};

/// A namespace with one interface, and nobody else.
pub(super) fn lonely() -> Site {
    let mut site = Site::new();
    site.add("director");
    site.add("nobody");
    site.join(("director", "eth0"), ("nobody", "eth0"), 1);
    site.run("director", "ip addr add 192.0.2.1/24 dev eth0").ok();
    site
}

/// Files that the table names.
pub(super) fn write_files(site: &Site) {
    site.write("bad", "-A -t 192.0.2.9:80 -s rr\n-A -t 192.0.2.9:81 -s nonsense\n");
    site.write("slip", "# saved\n-A -t 192.0.2.9:80 -s rr\n-A -t 912.168.0.1:80 -s rr\n");
    site.write("setting", "set no_such 1\n-A -t 192.0.2.9:80 -s rr\n");
    site.write("refused", "# saved\n-A -t 192.0.2.9:81 -s nonsense\n");
}

/// The table's text with its places filled in.
pub(super) fn filled(text: &str, site: &Site) -> String {
    text.replace('%', site.path("").to_str().unwrap())
}

/// Checks status and words of what was run.
#[track_caller]
pub(super) fn says(told: &Told, finished: &Finished, site: &Site, what: &str) {
    let Told::Says(status, words) = told else { panic!("{what}: a program says what is wrong") };
    let what = format!("{what}: {}: {}", finished.status, finished.stderr);
    assert_eq!(finished.status, *status, "{what}");
    for word in *words {
        assert!(finished.stderr.contains(&filled(word, site)), "'{word}': {what}");
    }
    assert!(!finished.stderr.contains("panicked"), "{what}");
}

fn start(site: &Site, input: &Input, port_type: PortType) -> Option<Finished> {
    let mut process = match input {
        Input::Start(interfaces, options) => {
            let options: Vec<String> = options.iter().map(|option| filled(option, site)).collect();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            Director::launch(site, "director", interfaces, port_type, &options)
        }
        Input::StartWithoutPrivileges => {
            let (control, state) = (site.control(), Director::state_directory(site));
            let mut arguments = vec!["--bounding-set=-all", "--inh-caps=-all", UVS, "run"];
            arguments.extend(["--interface", "eth0", "--connections", "1000"]);
            arguments.extend(["--control", control.to_str().unwrap()]);
            arguments.extend(["--state-directory", state.to_str().unwrap()]);
            arguments.extend(port_type.options());
            site.start("director", "setpriv", arguments)
        }
        _ => return None,
    };
    Some(process.wait(DEADLINE))
}

#[test]
fn a_director_that_cannot_start_says_why_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let site = lonely();
    write_files(&site);
    for (row, (input, told, effect)) in TABLE.iter().enumerate() {
        for port_type in [PortType::XdpNative, PortType::Packet] {
            let Some(finished) = start(&site, input, port_type) else { continue };
            says(told, &finished, &site, &format!("row {row}, {told:?}, {port_type:?}"));
            assert!(*effect == Effect::NoStart, "row {row}");
            assert_nothing_left(&site, "director", &["eth0".to_owned()]);
        }
    }
}

#[test]
fn commands_without_a_director_say_so() {
    if !is_root() {
        return;
    }
    let site = lonely();
    for (row, (input, told, effect)) in TABLE.iter().enumerate() {
        let Input::CommandForNobody(line) = input else { continue };
        says(told, &site.run("director", line), &site, &format!("row {row}, {told:?}"));
        assert!(*effect == Effect::NoDirector, "row {row}");
        assert_nothing_left(&site, "director", &["eth0".to_owned()]);
    }
}
