//! Where a running lab keeps its files, and how the remains of a killed one are found and removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::FlockOperation;

use super::namespace::{self, NAMESPACES};

/// Where labs have their directories.
const RUN: &str = "/run";
/// How the names of their directories and namespaces begin.
const PREFIX: &str = "uvs-lab-";
/// The file in a lab's directory that is locked as long as the lab lives.
const LOCK: &str = "lock";
/// Names that are tried: where process numbers are not unique (containers that share `/run`), some are taken.
const CLAIM_ATTEMPTS: u32 = 16;

/// A lab's directory and the prefix of its namespaces, removed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    name: String,
    directory: PathBuf,
    /// Held locked for as long as the lab lives.
    _lock: File,
}

impl Place {
    /// A place that no other lab has, in this process or another.
    pub(super) fn claim() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut result = Err(io::ErrorKind::AlreadyExists.into());
        for _ in 0..CLAIM_ATTEMPTS {
            let name = match COUNT.fetch_add(1, Ordering::Relaxed) {
                0 => format!("{PREFIX}{}", std::process::id()),
                count => format!("{PREFIX}{}.{count}", std::process::id()),
            };
            result = Self::claim_name(name);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn claim_name(name: String) -> io::Result<Self> {
        let directory = Path::new(RUN).join(&name);
        // Made and locked under a name that `sweep` does not look at: it never sees a place without its lock.
        let draft = Path::new(RUN).join(format!(".{name}"));
        fs::create_dir(&draft)?;
        let locked = File::create_new(draft.join(LOCK)).and_then(|lock| {
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            fs::rename(&draft, &directory)?;
            Ok(lock)
        });
        match locked {
            Ok(lock) => Ok(Self { name, directory, _lock: lock }),
            Err(error) => {
                fs::remove_dir_all(&draft)?;
                Err(error)
            }
        }
    }

    /// The name of the lab's namespace for `role`.
    pub(super) fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// The path of the lab's file `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "the lab's directory was not removed");
        }
    }
}

/// Removes what labs left behind that were killed: their directories are not locked. Gives their names.
pub(super) fn sweep() -> io::Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in names(Path::new(RUN))? {
        let directory = Path::new(RUN).join(&name);
        let Ok(lock) = File::open(directory.join(LOCK)) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue; // it lives
        }
        for namespace in names(Path::new(NAMESPACES))? {
            if namespace.strip_prefix(&name).is_some_and(|role| role.starts_with('-')) {
                namespace::remove(&Path::new(NAMESPACES).join(namespace));
            }
        }
        fs::remove_dir_all(&directory)?;
        swept.push(name);
    }
    Ok(swept)
}

/// The entries of a directory that are named like a lab; none where there is no such directory.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(PREFIX)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::namespace::Namespace;
    use super::*;

    #[test]
    fn a_killed_labs_remains_are_swept_and_a_living_ones_are_not() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
            eprintln!("SKIPPED: needs root, to make network namespaces");
            return;
        }
        let (living, dead) = (Place::claim().unwrap(), Place::claim().unwrap());
        let kept = Namespace::create(&living.namespace("x")).unwrap();
        let lost = Namespace::create(&dead.namespace("x")).unwrap();
        let (lost_path, dead_directory) = (lost.path().to_owned(), dead.file(""));
        // As if killed: nothing is cleaned up, and the lock is free because its holder is gone.
        rustix::fs::flock(&dead._lock, FlockOperation::Unlock).unwrap();
        std::mem::forget((lost, dead));
        // The sweep of a test beside this one may come first.
        sweep().unwrap();
        assert!(!lost_path.exists() && !dead_directory.exists());
        assert!(kept.path().exists() && living.file("").exists());
    }
}
