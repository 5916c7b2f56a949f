//! A server of an earlier run, which was killed, that still uses a data directory; and its pid file.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{has_argument, has_process_in, pid_in, signal, wait_until};

/// Stops the server that still uses `data`, then removes its pid file: Postgres would refuse to start
/// if that pid now belongs to another program. Waits for all backends, whose working directory is the
/// data directory: one that survived would write to the files of the new server.
pub(crate) fn stop(data: &Path) -> Result<()> {
    let file = data.join("postmaster.pid");
    let postmaster = pid_in(&file).filter(|&pid| has_argument(pid, data));
    let in_use = || postmaster.is_some_and(|pid| has_argument(pid, data)) || has_process_in(data);
    for (how, seconds) in [(libc::SIGINT, 15), (libc::SIGQUIT, 5), (libc::SIGKILL, 5)] {
        if !in_use() {
            break;
        }
        if let Some(pid) = postmaster {
            signal(pid, libc::SIGCONT);
            signal(pid, how);
        }
        wait_until(Duration::from_secs(seconds), || !in_use());
    }
    ensure!(!in_use(), "another Postgres still uses {}: stop it", data.display());
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}
