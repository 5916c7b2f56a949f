//! Starts and stops the private servers of a command.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sandbox::Sandbox;

/// Starts the servers that the environment does not configure, with their data under `root`. Reports
/// slow steps on stderr. Blocks.
pub(crate) fn start(root: &Path) -> Result<Sandbox> {
    start_reporting(root, &mut |line| eprintln!("onhand: {line} ..."))
}

/// The same for async commands; `progress` gets the reports.
pub(crate) async fn start_async(root: PathBuf, mut progress: impl FnMut(&str) + Send + 'static) -> Result<Sandbox> {
    tokio::task::spawn_blocking(move || start_reporting(&root, &mut progress)).await.context("starting servers")?
}

/// Stops them without blocking other tasks.
pub(crate) async fn stop(servers: Sandbox) -> Result<()> {
    tokio::task::spawn_blocking(|| servers.stop()).await.context("stopping servers")
}

fn start_reporting(root: &Path, progress: &mut dyn FnMut(&str)) -> Result<Sandbox> {
    Ok(Sandbox::start(root, progress)?)
}
