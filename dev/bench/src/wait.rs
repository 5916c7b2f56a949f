//! Waiting for what another process does.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// Longer than any measurement: only a process that hangs reaches it.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Between two looks, unless a measurement needs another precision.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Waits until the condition holds or fails; checks it every `pause`.
pub(crate) fn until(pause: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !condition()? {
        ensure!(began.elapsed() < TIMEOUT, "it did not happen in an hour");
        thread::sleep(pause);
    }
    Ok(())
}
