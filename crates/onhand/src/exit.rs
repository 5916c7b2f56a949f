//! How a command ends: its exit status, and an error in one sentence on stderr. As with `grep` and
//! `diff`, 0 and 1 are answers and 2 is none:
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done; for a question: yes, everything holds |
//! | 1 | done, and the answer is no: something differs, or was refused |
//! | 2 | not done: an error, on stderr |
//! | 141 | whatever read our output has stopped reading (128 + SIGPIPE) |

use std::{io, process::ExitCode};

use anyhow::Result;
use runtime::lifecycle;

/// Done, and the answer is no: the command has said what differs or was refused.
pub(crate) const NO: ExitCode = ExitCode::FAILURE;
/// Not done. The same status as for wrong arguments, which clap reports.
pub(crate) const ERROR: u8 = 2;
/// What a shell reports of a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// The status of a question's answer. What is known to be wrong outweighs what could not be checked.
pub(crate) fn answer(is_right: bool, is_checked: bool) -> ExitCode {
    match (is_right, is_checked) {
        (false, _) => NO,
        (true, false) => ExitCode::from(ERROR),
        (true, true) => ExitCode::SUCCESS,
    }
}

/// The status of a result; 2 for an error, which is reported, unless it is only that nobody reads
/// our output any longer.
pub(crate) fn code(ended: Result<ExitCode>) -> ExitCode {
    match ended {
        Ok(code) => code,
        Err(error) if error.chain().any(is_broken_pipe) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            eprintln!("onhand: {error:#}");
            ExitCode::from(ERROR)
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
