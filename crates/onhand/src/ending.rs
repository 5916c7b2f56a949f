//! How a command ends: its exit status, and an error in one sentence on stderr.

use std::{io, process::ExitCode};

use anyhow::Result;
use runtime::lifecycle;

/// What a shell reports of a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// 0 for a result; 1 for an error, which is told, unless it is only that nobody reads our output
/// any longer.
pub(crate) fn exit_code(ended: Result<ExitCode>) -> ExitCode {
    match ended {
        Ok(code) => code,
        Err(error) if error.chain().any(is_broken_pipe) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            eprintln!("onhand: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command that talks to servers.
pub(crate) fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    lifecycle::block_on(command)
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
