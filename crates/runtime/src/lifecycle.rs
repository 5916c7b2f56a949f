//! How a process starts and stops: the first signal asks everything to finish, the second exits at
//! once, and a task that fails or panics stops the process with an error.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Keeps memory small: glibc otherwise gives every thread a heap of its own, and a service has a
/// dozen of them; and large buffers go back to the system when they are freed. To be called first,
/// before there are threads.
pub fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers; no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// How long blocking calls are waited for when a process exits.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// Runs the work of a process on a Tokio runtime. Requests to servers that do not answer are then
/// abandoned.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let tokio = tokio.context("starting the async runtime")?;
    let ended = tokio.block_on(work);
    tokio.shutdown_timeout(LAST_CALLS);
    ended
}

/// A token that SIGINT or SIGTERM cancels. A second signal ends the process at once, with 128 plus
/// the signal's number as the exit status.
pub fn shutdown_on_signals() -> Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let token = shutdown.clone();
    tokio::spawn(async move {
        loop {
            let number = tokio::select! { _ = interrupt.recv() => 2, _ = terminate.recv() => 15 };
            if token.is_cancelled() {
                std::process::exit(128 + number);
            }
            tracing::info!("stopping; a second signal exits at once");
            token.cancel();
        }
    });
    Ok(shutdown)
}

/// Tasks that stop together: when one ends with an error or panics, the others are asked
/// to finish and the error is the result.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    /// No tasks yet; `shutdown` asks all of them to finish.
    pub fn new(shutdown: CancellationToken) -> Tasks {
        Tasks { set: JoinSet::new(), shutdown }
    }

    /// Starts a task. `name` is for the error when it fails.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until all have ended. The first failure is the result.
    pub async fn join(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.set.join_next().await {
            let ended = match ended {
                Ok((name, ended)) => ended.with_context(|| name.to_owned()),
                Err(panic) => Err(anyhow!("a task panicked: {panic}")),
            };
            if let Err(error) = ended {
                self.shutdown.cancel();
                if result.is_ok() {
                    result = Err(error);
                } else {
                    tracing::error!(error = format!("{error:#}"), "a task failed while stopping");
                }
            }
        }
        result
    }
}
