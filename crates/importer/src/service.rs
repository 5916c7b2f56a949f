//! The service around the importer's thread.

use anyhow::{Context, Result, anyhow};
use runtime::{health::Health, kafka::ensure_topics};
use tokio_util::sync::CancellationToken;

use crate::{Settings, engine::Engine};

/// Imports what is dropped into the directory until `shutdown`; then ends within 10 s, with
/// everything that was sent acknowledged or left for the next start. An error means that it can't
/// work at all: a broken file or an absent broker is none.
pub async fn run(settings: Settings, health: Health, shutdown: CancellationToken) -> Result<()> {
    let waited = ensure_topics(&settings.kafka, &settings.kafka.all_topics(), &health, &shutdown).await;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    waited?;
    let engine = Engine::new(settings, health, shutdown.clone())?;
    let waker = engine.waker();
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("importer".into())
        .spawn(move || {
            let _ = ended.send(engine.run());
        })
        .context("starting the importer's thread")?;
    let ring = async {
        shutdown.cancelled().await;
        let _ = waker.try_send(Default::default());
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = end => ended.map_err(|_| anyhow!("the importer's thread panicked"))?,
        () = ring => Ok(()),
    }
}
