//! The service: creates the topics, then runs the importer's thread until shutdown.

use anyhow::{Context, Result, anyhow};
use runtime::{health::Health, kafka::ensure_topics};
use tokio_util::sync::CancellationToken;

use crate::{Settings, engine::Engine};

/// Imports what is dropped into the directory until `shutdown`, then returns within 10 s; what is not
/// acknowledged by then is sent again by the next start. An error means that the importer cannot work at
/// all; corrupt files and an unavailable broker are not errors.
pub async fn run(settings: Settings, health: Health, shutdown: CancellationToken) -> Result<()> {
    let created = ensure_topics(&settings.kafka, &settings.kafka.all_topics(), &health, &shutdown).await;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    created?;
    let engine = Engine::new(settings, health, shutdown.clone())?;
    let waker = engine.waker();
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("importer".into())
        .spawn(move || {
            let _ = ended.send(engine.run());
        })
        .context("starting the importer's thread")?;
    let wake_on_shutdown = async {
        shutdown.cancelled().await;
        waker.wake();
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = end => ended.map_err(|_| anyhow!("the importer's thread panicked"))?,
        () = wake_on_shutdown => Ok(()),
    }
}
