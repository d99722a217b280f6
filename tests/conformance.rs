//! Recordings of random sequences, played at the director in this process.
//!
//! `scripts/conformance` gives a Linux kernel with IPVS random rules and packets, and writes down what it does in the
//! form of `tests/oracle/cases`; `play_recordings` here says where the director does otherwise. Where it does so on
//! purpose, `tests/conformance/differences` has the smallest sequence that shows it, and README.md the reason.

// This program needs only a part of what they have.
#[allow(dead_code)]
#[path = "oracle/compare.rs"]
mod compare;
#[allow(dead_code)]
#[path = "oracle/lab.rs"]
mod lab;
#[path = "conformance/play.rs"]
mod play;

use std::any::Any;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use play::{Played, play};

/// A file's recording.
fn recording(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn recordings(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

/// Plays the recordings in the folder `UVS_CONFORMANCE`; what comes of each is in a file beside it, `NAME.result`.
#[test]
#[ignore = "scripts/conformance runs it, with recordings that it has just made"]
fn play_recordings() {
    let folder = PathBuf::from(env::var_os("UVS_CONFORMANCE").expect("UVS_CONFORMANCE names a folder"));
    for path in recordings(&folder) {
        let case = recording(&path);
        let played = catch_unwind(AssertUnwindSafe(|| play(&case))).unwrap_or_else(|panic| Played {
            compared: 0,
            differences: vec![(0, panic_message(panic.as_ref()))],
        });
        let result = json!({ "compared": played.compared, "differences": played.differences });
        fs::write(path.with_extension("result"), result.to_string()).unwrap();
    }
}

/// A difference that is gone has to go from README.md, too, and its recording to `tests/oracle/cases`.
#[test]
fn deliberate_differences_are_still_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/differences");
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for path in recordings(&folder) {
        let case = recording(&path);
        let name = case["name"].as_str().unwrap();
        assert!(!play(&case).differences.is_empty(), "{name}: the director does what the kernel does");
        assert!(readme.contains(&format!("`{name}`")), "{name}: README.md does not say why");
    }
}
