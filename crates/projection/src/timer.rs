//! Timed work: a service's `due` is called when its time has come.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use events::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    ApplyError, Projection,
    apply::{ANSWER, Shared, Trouble, no_answer},
    outbox,
    worker::PATIENCE,
};

/// How often to look without being told of anything due: other processes may have left work.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest pause between two looks.
const SHORTEST: Duration = Duration::from_millis(20);

pub(crate) async fn run<P: Projection>(shared: Arc<Shared<P>>, shutdown: CancellationToken) -> Result<()> {
    let mut trouble = Trouble::none(&shared.troubled);
    while !shutdown.is_cancelled() {
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(ANSWER, transaction(&shared)) => ended.unwrap_or_else(|_| Err(no_answer())),
            () = too_late(&shutdown) => {
                tracing::warn!("timed work did not end in {PATIENCE:?} and is abandoned");
                break;
            }
        };
        let next = match ended {
            Ok(next) => next,
            Err(ApplyError::Stale) => {
                tokio::time::sleep(SHORTEST).await;
                continue;
            }
            Err(ApplyError::Fatal(error)) => return Err(error),
            Err(ApplyError::Transient(error) | ApplyError::Batch(error)) => {
                if !shared.pause(&error, &mut trouble, &shutdown).await {
                    break;
                }
                continue;
            }
        };
        trouble.over(&shared.health);
        let wait = next.map_or(LOOK, |next| {
            Duration::from_micros(next.0.saturating_sub(shared.now().0).max(0) as u64).clamp(SHORTEST, LOOK)
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => {}
        }
    }
    Ok(())
}

async fn too_late(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(PATIENCE).await;
}

async fn transaction<P: Projection>(shared: &Shared<P>) -> Result<Option<Timestamp>, ApplyError> {
    let began = Instant::now();
    let mut tx = shared.pool.begin().await?;
    let due = shared.projection.due(&mut tx, shared.now()).await?;
    let Some(said) = due.said else { return Ok(due.next) };
    outbox::put(&mut tx, P::SERVICE, &shared.errors_topic, &said.dead_letters).await?;
    tx.commit().await?;
    shared.committed(said.outcome, began, said.dead_letters.len());
    Ok(due.next)
}
