//! Ctrl-C and SIGTERM as a flag that loops look at.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the handler, never cleared but by [`Termination::catch`].
static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

/// Tells whether the process was asked to end. Any number of copies may be held.
#[derive(Clone, Copy, Debug)]
pub struct Termination(());

extern "C" fn note(_signal: libc::c_int) {
    ASKED_TO_END.store(true, Ordering::Relaxed);
}

impl Termination {
    /// From now on SIGINT and SIGTERM set a flag instead of ending the process. System calls that wait are
    /// interrupted, not restarted. Programs started later get the default handling back.
    ///
    /// # Errors
    /// The kernel's own; does not happen for these signals.
    pub fn catch() -> io::Result<Self> {
        ASKED_TO_END.store(false, Ordering::Relaxed);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: the structure is plain data for which all zeros is valid (no flags, empty mask); the
            // handler only stores to an atomic, which is allowed in a signal handler. The standard library has
            // no signals.
            let result = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
                libc::sigaction(signal, &action, std::ptr::null_mut())
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(()))
    }

    /// Whether a signal came since [`catch`](Self::catch).
    pub fn requested(self) -> bool {
        ASKED_TO_END.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_sets_the_flag_and_does_not_end_the_process() {
        let termination = Termination::catch().unwrap();
        assert!(!termination.requested());
        // SAFETY: raising a signal that has a handler runs that handler, on this thread and before the call
        // returns. rustix can only signal the whole process, which would interrupt the tests beside this one.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        assert!(termination.requested());
        assert!(Termination::catch().is_ok_and(|again| !again.requested()));
    }
}
