//! The private servers of a command, and what their start says.

use std::path::Path;

use anyhow::Result;
use sandbox::Sandbox;

/// Starts on `root` what the environment does not configure. What takes long is told on stderr.
/// Blocks.
pub(crate) fn start(root: &Path) -> Result<Sandbox> {
    Ok(Sandbox::start(root, &mut |line| eprintln!("onhand: {line} ..."))?)
}
