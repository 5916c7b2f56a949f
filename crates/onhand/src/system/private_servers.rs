//! The private servers of a command, and what their start says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sandbox::Sandbox;

/// Starts on `root` what the environment does not configure. What takes long is told on stderr.
/// Blocks.
pub(crate) fn start(root: &Path) -> Result<Sandbox> {
    start_telling(root, &mut |line| eprintln!("onhand: {line} ..."))
}

/// The same for async commands, telling whom they like.
pub(crate) async fn start_async(root: PathBuf, mut tell: impl FnMut(&str) + Send + 'static) -> Result<Sandbox> {
    tokio::task::spawn_blocking(move || start_telling(&root, &mut tell)).await.context("starting servers")?
}

/// Stops them without holding up the other tasks.
pub(crate) async fn stop(servers: Sandbox) -> Result<()> {
    tokio::task::spawn_blocking(|| servers.stop()).await.context("stopping servers")
}

fn start_telling(root: &Path, tell: &mut dyn FnMut(&str)) -> Result<Sandbox> {
    Ok(Sandbox::start(root, tell)?)
}
