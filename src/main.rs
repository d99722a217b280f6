//! The `uvs` program: one binary, many commands; also `ipvsadm` and its kin, when started under their names.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use uvs::control::{adm, client, marks};
use uvs::daemon::{self, RunOptions};
use uvs::io::steering;
use uvs::lab::{self, LabOptions};
use uvs::replay;

/// Userspace Virtual Server: an LVS director without the kernel's IPVS.
#[derive(Debug, Parser)]
#[command(name = "uvs", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the director, in the foreground
    Run(RunOptions),
    /// Configure a running director, in ipvsadm's grammar
    #[command(disable_help_flag = true)]
    Adm {
        /// What ipvsadm would take
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Mark packets for services by mark, in iptables' words
    #[command(disable_help_flag = true)]
    Mark {
        /// What iptables would take
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Change a setting (the names of net.ipv4.vs)
    Set {
        /// The setting's name
        name: String,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Show a setting, or all of them
    Get {
        /// The setting's name
        name: Option<String>,
    },
    /// Show frames by verdict, and each port's own counters
    Stats {
        /// For programs to read
        #[arg(long)]
        json: bool,
    },
    /// Run the director over captures, offline: what would it have done?
    Replay(replay::Options),
    /// Try the director on a whole cluster, made of network namespaces on this machine
    Lab(LabOptions),
    /// Clean up after a director that was killed: its clients' frames reach the host again
    Detach {
        /// Only this interface
        #[arg(long)]
        interface: Option<String>,
        /// Where the dead director kept its locks and pinned programs
        #[arg(long, value_name = "DIRECTORY", default_value = steering::DEFAULT_DIRECTORY)]
        state_directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.first().and_then(|name| adm::invocation(name)).is_some() {
        return run_adm(&args);
    }
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    let status = match Cli::parse().command {
        Subcommands::Run(options) => {
            drop((stdout, stderr));
            return run(&options);
        }
        Subcommands::Adm { args } => {
            drop((stdout, stderr));
            let args: Vec<OsString> = [OsString::from("uvs adm")].into_iter().chain(args).collect();
            return run_adm(&args);
        }
        Subcommands::Mark { args } => marks::mark(&args, &mut stdout, &mut stderr),
        Subcommands::Set { name, value } => client::set(&name, &value, &mut stdout, &mut stderr),
        Subcommands::Get { name } => client::get(name.as_deref(), &mut stdout, &mut stderr),
        Subcommands::Stats { json } => client::stats(json, &mut stdout, &mut stderr),
        Subcommands::Replay(options) => replay::run(&options, &mut stdout, &mut stderr),
        Subcommands::Lab(options) => {
            drop((stdout, stderr));
            return lab::main(&options);
        }
        Subcommands::Detach { interface, state_directory } => {
            drop((stdout, stderr));
            return detach(interface.as_deref(), &state_directory);
        }
    };
    exit(status)
}

fn exit(status: i32) -> ExitCode {
    ExitCode::from(status as u8)
}

fn run_adm(args: &[OsString]) -> ExitCode {
    exit(adm::adm(args, &mut io::stdin().lock(), &mut io::stdout().lock(), &mut io::stderr().lock()))
}

fn run(options: &RunOptions) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("UVS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn detach(interface: Option<&str>, directory: &std::path::Path) -> ExitCode {
    match steering::detach(directory, interface) {
        Ok(detached) => {
            for interface in &detached.removed {
                println!("{interface}: detached");
            }
            for (interface, pid) in &detached.in_use {
                let who = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                println!("{interface}: a running director{who} has it; left alone");
            }
            if detached.removed.is_empty() && detached.in_use.is_empty() {
                println!("nothing to detach");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("uvs detach: {error}");
            ExitCode::FAILURE
        }
    }
}
