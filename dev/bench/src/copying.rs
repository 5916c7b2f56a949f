//! A bare binary COPY of the same rows, in the same batches, over as many connections, into the
//! same table: what the stock service cannot do without.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use runtime::PostgresSettings;
use sqlx::postgres::PgPoolOptions;
use stock::JournalRow;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{measured::Measured, progress::Progress};

/// The order of the rows of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    OfTopic,
    OfIds,
}

/// How fast the rows were copied.
pub(crate) struct Copied {
    /// All of them. The processor time is not measured.
    pub(crate) total: Measured,
    /// Rows a second in their second half.
    pub(crate) steady_rate: f64,
}

/// Copies each partition's events batch by batch.
pub(crate) async fn copy(
    settings: &PostgresSettings,
    mut partitions: Vec<Vec<JournalRow>>,
    batch_size: usize,
    transactions: u32,
    order: Order,
) -> Result<Copied> {
    let options = runtime::postgres::options(settings, "bench");
    let pool = PgPoolOptions::new().max_connections(transactions).connect_with(options).await?;
    let count = partitions.iter().map(|events| events.len() as u64).sum();
    if let Order::OfIds = order {
        for batch in partitions.iter_mut().flat_map(|events| events.chunks_mut(batch_size)) {
            batch.sort_unstable_by_key(|row| row.event.transaction_id);
        }
    }
    let at_a_time = Arc::new(Semaphore::new(transactions as usize));
    let began = Instant::now();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for events in partitions {
        let (pool, at_a_time, samples) = (pool.clone(), Arc::clone(&at_a_time), Arc::clone(&samples));
        tasks.spawn(async move {
            let mut buffer = Vec::new();
            for batch in events.chunks(batch_size) {
                let _permit = at_a_time.acquire().await?;
                let mut tx = pool.begin().await?;
                stock::copy_journal(&mut tx, batch, &mut buffer).await?;
                tx.commit().await?;
                let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
                let before = samples.last().map_or(0, |(_, count)| *count);
                samples.push((began.elapsed(), before + batch.len() as u64));
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let took = began.elapsed();
    pool.close().await;
    let samples = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner));
    let total = Measured { count, took, cpu: std::time::Duration::ZERO, peak_mib: 0.0 };
    Ok(Copied { total, steady_rate: Progress::of(samples).steady_rate()? })
}
