//! Network namespaces with names, as `ip netns add` makes them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FlockOperation;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};

use crate::net::Netlink;
use crate::sys::namespace::{enter_network, spawn_in_network, unshare_network};

/// Where `ip netns` looks for namespaces.
pub const NAMESPACES: &str = "/run/netns";

/// A network namespace under a name, removed when dropped. `ip netns exec NAME` and `nsenter --net=PATH` work
/// with it as long as it lives.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    file: File,
    netlink: Mutex<Netlink>,
}

impl Namespace {
    /// Makes a new and empty network namespace called `name`.
    ///
    /// # Errors
    /// A namespace of that name exists; without root, permission denied.
    pub fn create(name: &str) -> io::Result<Self> {
        prepare_directory()?;
        let path = Path::new(NAMESPACES).join(name);
        File::create_new(&path)?;
        // From here on, whatever fails takes the name away again.
        let mount = Mount(path.clone());
        let (file, netlink) = on_a_thread(|| {
            unshare_network()?;
            mount_bind("/proc/thread-self/ns/net", &path)?;
            io::Result::Ok((File::open(&path)?, Netlink::open()?))
        })??;
        std::mem::forget(mount);
        Ok(Self { name: name.to_owned(), path, file, netlink: Mutex::new(netlink) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, for `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets opened there stay in it, wherever they
    /// are used afterwards.
    ///
    /// # Errors
    /// No thread, or the kernel's refusal to enter the namespace; `work` was not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| enter_network(self.file.as_fd()).map(|()| work()))?
    }

    /// Starts `command` inside the namespace. The process ends with the calling thread at the latest.
    ///
    /// # Errors
    /// As of [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        spawn_in_network(&self.file, command)
    }

    /// Sets a network sysctl of the namespace, named as the path below `/proc/sys/net`, as in
    /// `ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is no such sysctl, or it does not take the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| fs::write(&path, value))?
            .map_err(|cause| io::Error::new(cause.kind(), format!("{} = {value}: {cause}", path.display())))
    }

    /// Reads a network sysctl of the namespace; see [`set_sysctl`](Self::set_sysctl).
    ///
    /// # Errors
    /// There is no such sysctl.
    pub fn sysctl(&self, name: &str) -> io::Result<String> {
        let path = Path::new("/proc/sys/net").join(name);
        Ok(self.run(|| fs::read_to_string(path))??.trim().to_owned())
    }

    /// The namespace's netlink socket.
    pub(super) fn netlink(&self) -> MutexGuard<'_, Netlink> {
        self.netlink.lock()
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// A name on the way to becoming a namespace: taken away when dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Takes the name of a namespace away. The namespace itself ends with its last process and socket.
pub(super) fn remove(path: &Path) {
    if let Err(error) = unmount(path, UnmountFlags::DETACH)
        && error != rustix::io::Errno::INVAL
    {
        tracing::warn!(path = %path.display(), %error, "a network namespace could not be unmounted");
    }
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a network namespace could not be removed");
    }
}

/// Makes the directory of the namespaces, and shares its mounts as `ip netns` does, so that a namespace removed
/// here is gone in the mount namespaces of programs started by `ip netns exec` too.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(NAMESPACES)?;
    let directory = File::open(NAMESPACES)?;
    // The lock that `ip netns` takes, so that the directory is not mounted over itself twice.
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if mount_change(NAMESPACES, shared).is_err() {
        // Not a mount point yet.
        mount_bind_recursive(NAMESPACES, NAMESPACES)?;
        mount_change(NAMESPACES, shared)?;
    }
    Ok(())
}

/// Runs `work` on a thread of its own, whose namespaces end with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("uvs-namespace".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
