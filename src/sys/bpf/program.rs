//! Programs: loading, trying out, and attaching to sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{BpfError, Code, Command, bpf, bpf_descriptor, object_name, pointer, pointer_mut};

/// What a program is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgramKind {
    /// Filters what a socket receives.
    SocketFilter,
    /// Decides at TCX (formerly: traffic control's classifier).
    Tcx,
    /// Decides at XDP.
    Xdp,
}

impl ProgramKind {
    /// `enum bpf_prog_type`, and the attach type to be expected.
    const fn types(self) -> (u32, u32) {
        match self {
            Self::SocketFilter => (1, 0),
            Self::Tcx => (3, 0),
            Self::Xdp => (6, 37),
        }
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
}

/// What came of [`Program::test_run`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// What the program returned, the last time.
    pub result: u32,
    /// Mean time of a run.
    pub duration: Duration,
}

/// The verifier's explanation is cut to this many bytes.
const LOG_BYTES: usize = 64 << 10;

/// Loading is interrupted by signals (EAGAIN); how often it is tried.
const LOAD_ATTEMPTS: usize = 5;

#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct TestRunAttributes {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

impl Program {
    /// Has the kernel verify and load `code`. The name may hold letters, digits, `_` and `.`, and is cut to 15.
    ///
    /// # Errors
    /// No privileges; or the verifier's refusal, with its explanation.
    pub fn load(kind: ProgramKind, name: &'static str, code: &Code<'_>) -> Result<Self, BpfError> {
        let error = match load(kind, name, code, &mut []) {
            Ok(descriptor) => return Ok(Self { descriptor }),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(BpfError::new("load a BPF program", error));
            }
            Err(error) => error,
        };
        // Once more, for the explanation.
        let mut log = vec![0_u8; LOG_BYTES];
        match load(kind, name, code, &mut log) {
            Ok(descriptor) => Ok(Self { descriptor }),
            Err(_) => {
                let length = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..length]).trim_end().to_owned();
                Err(BpfError::Refused { program: name, source: error, log })
            }
        }
    }

    /// Runs the program `repeat` times (at least once) on a copy of `frame`, which begins with an Ethernet
    /// header. Socket filters are shown what follows those 14 bytes.
    ///
    /// # Errors
    /// The kernel's own: no privileges, a frame shorter than 14 bytes or longer than a page.
    pub fn test_run(&self, frame: &[u8], repeat: u32) -> Result<TestRun, BpfError> {
        const ACTION: &str = "try a BPF program out";
        let size = u32::try_from(frame.len())
            .map_err(|_| BpfError::new(ACTION, io::ErrorKind::InvalidInput.into()))?;
        let mut attributes = TestRunAttributes {
            program: self.descriptor.as_raw_fd() as u32,
            result: 0,
            data_size_in: size,
            data_size_out: 0,
            data_in: pointer(frame),
            data_out: 0,
            repeat: repeat.max(1),
            duration: 0,
            context_size_in: 0,
            context_size_out: 0,
            context_in: 0,
            context_out: 0,
        };
        // SAFETY: the layout is the beginning of BPF_PROG_TEST_RUN's; the kernel reads `data_size_in` bytes of the
        // frame and, without an output buffer, writes only to the attributes.
        unsafe { bpf(Command::ProgramTestRun, &mut attributes) }
            .map_err(|error| BpfError::new(ACTION, error))?;
        Ok(TestRun {
            result: attributes.result,
            duration: Duration::from_nanos(u64::from(attributes.duration)),
        })
    }

    /// Makes a socket-filter program decide what `socket` receives, in the place of any before it.
    ///
    /// # Errors
    /// The kernel's own; invalid input where the program is of another kind.
    pub fn attach_to_socket(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let program: libc::c_int = self.descriptor.as_raw_fd();
        // SAFETY: the kernel reads one int, which outlives the call. rustix has no SO_ATTACH_BPF.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                std::ptr::from_ref(&program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(BpfError::new("attach a filter to a socket", io::Error::last_os_error()))
        }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn load(kind: ProgramKind, name: &str, code: &Code<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let (kind, expected_attach_type) = kind.types();
    let license = c"Dual MIT/GPL";
    let mut attributes = LoadAttributes {
        kind,
        instruction_count: code.instructions().len() as u32,
        instructions: pointer(code.instructions()),
        license: pointer(license.to_bytes_with_nul()),
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { pointer_mut(log) },
        kernel_version: 0,
        flags: 0,
        name: object_name(name),
        interface: 0,
        expected_attach_type,
    };
    let mut result = Err(io::ErrorKind::WouldBlock.into());
    for _ in 0..LOAD_ATTEMPTS {
        // SAFETY: the layout is the beginning of BPF_PROG_LOAD's; the instructions are `instruction_count` long, the
        // license ends with a zero, the log has `log_size` bytes to write to, and all outlive the call, which returns
        // a new descriptor. The maps named in the instructions are alive: `Code` borrows them.
        result = unsafe { bpf_descriptor(Command::ProgramLoad, &mut attributes) };
        match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::{Assembler, Register};
    use super::*;

    #[test]
    fn a_refused_program_is_explained() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none(), "UVS_REQUIRE_ROOT is set");
            eprintln!("SKIPPED: needs root to load BPF programs");
            return;
        }
        let mut asm = Assembler::new();
        asm.set(Register::R0, Register::R3);
        asm.exit();
        let error = Program::load(ProgramKind::Xdp, "bad", &asm.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("R3 !read_ok"), "{error}");
    }
}
