//! A partition's worker: a thread that fetches and decodes the next batch, and a task that applies
//! the one before. Two buffers go round between them, so memory is bounded and a slow database
//! holds up the fetching.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use rdkafka::{Message, consumer::base_consumer::PartitionQueue, error::KafkaError};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::{Applied, Applier, Shared},
    batch::{Buffer, Received},
    group::{Context, Partition},
};

/// How long the first record of a batch may wait for others.
const LINGER: Duration = Duration::from_millis(5);
/// Bytes of memory that the buffers of all partitions of a process may take together.
const BUFFERS: usize = 20 << 20;
/// How long what is asked to stop may take over the transaction in hand.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// What a worker tells the consumer's thread.
pub(crate) enum Report {
    /// It ended by itself: fenced, or with an error that stops the service.
    Ended(Partition, Result<Applied>),
    /// Fetching met an error.
    Fetch(KafkaError),
}

/// What is the same for all workers.
pub(crate) struct Work<P> {
    pub(crate) shared: Arc<Shared<P>>,
    /// Records a batch holds at most.
    pub(crate) batch_size: usize,
    /// Partitions that this process has now.
    pub(crate) assigned: AtomicUsize,
    pub(crate) reports: Sender<Report>,
    pub(crate) tokio: Handle,
}

impl<P: Projection> Work<P> {
    /// Bytes that each buffer may take now: every partition has two.
    fn budget(&self) -> usize {
        BUFFERS / 2 / self.assigned.load(Ordering::Relaxed).max(1)
    }

    /// Events that a buffer has room for.
    fn room(&self) -> usize {
        self.batch_size.min(self.budget() / size_of::<Received<P::Event>>())
    }
}

pub(crate) struct Worker {
    stop: CancellationToken,
    fetching: thread::JoinHandle<()>,
    applying: tokio::task::JoinHandle<()>,
    /// The offset behind all that is committed.
    pub(crate) next_offset: Arc<AtomicI64>,
}

impl Worker {
    pub(crate) fn start<P: Projection>(
        work: &Arc<Work<P>>,
        partition: Partition,
        queue: PartitionQueue<Context>,
        next_offset: i64,
    ) -> std::io::Result<Worker> {
        let stop = CancellationToken::new();
        let committed = Arc::new(AtomicI64::new(next_offset));
        let (full, filled) = mpsc::channel(1);
        let (empty, empties) = mpsc::channel(1);
        let fetch = Fetch { work: Arc::clone(work), queue, next_offset, full, empties, stop: stop.clone() };
        let fetching = thread::Builder::new().name(format!("fetch-{}", partition.1)).spawn({
            let (reports, partition) = (work.reports.clone(), partition.clone());
            move || {
                if catch_unwind(AssertUnwindSafe(|| fetch.run())).is_err() {
                    let error = anyhow!("reading {} partition {} panicked", partition.0, partition.1);
                    // nobody listens when the service is ending anyway
                    let _ = reports.send(Report::Ended(partition, Err(error)));
                }
            }
        })?;
        let applier = Applier::new(Arc::clone(&work.shared), partition.0.clone(), partition.1, next_offset);
        let apply = apply(Arc::clone(work), partition, applier, filled, empty, stop.clone(), Arc::clone(&committed));
        Ok(Worker { stop, fetching, applying: work.tokio.spawn(apply), next_offset: committed })
    }

    /// Asks it to stop after the batch in hand.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped. A transaction that takes too long is left behind: the fence
    /// decides whether it counts.
    pub(crate) fn join(self, tokio: &Handle) {
        Worker::join_all([self], tokio);
    }

    /// Stops these together, so that all of them take no longer than one may.
    pub(crate) fn join_all(workers: impl IntoIterator<Item = Worker>, tokio: &Handle) {
        let workers: Vec<_> = workers.into_iter().inspect(Worker::stop).collect();
        let end = tokio::time::Instant::now() + PATIENCE;
        for worker in workers {
            worker.join_until(end, tokio);
        }
    }

    fn join_until(mut self, end: tokio::time::Instant, tokio: &Handle) {
        let waited = tokio.block_on(async { tokio::time::timeout_at(end, &mut self.applying).await });
        if waited.is_err() {
            tracing::warn!("a transaction did not end in {PATIENCE:?} and is abandoned");
            self.applying.abort();
        }
        if self.fetching.join().is_err() {
            tracing::error!("a fetching thread panicked");
        }
    }
}

async fn apply<P: Projection>(
    work: Arc<Work<P>>,
    partition: Partition,
    mut applier: Applier<P>,
    mut filled: mpsc::Receiver<Buffer<P::Event>>,
    empty: mpsc::Sender<Buffer<P::Event>>,
    stop: CancellationToken,
    committed: Arc<AtomicI64>,
) {
    let mut spare = Some(Buffer::new(work.room()));
    let applying = async {
        loop {
            if let Some(buffer) = spare.take()
                && empty.send(buffer).await.is_err()
            {
                return Ok(Applied::Stopped);
            }
            let buffer = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                buffer = filled.recv() => buffer,
            };
            let Some(mut buffer) = buffer else { return Ok(Applied::Stopped) };
            let applied = applier.apply(&buffer, &stop).await;
            committed.store(applier.next_offset, Ordering::Relaxed);
            if !matches!(applied, Ok(Applied::Whole)) {
                return applied;
            }
            buffer.clear();
            spare = Some(buffer);
        }
    };
    let ended = futures::FutureExt::catch_unwind(AssertUnwindSafe(applying))
        .await
        .unwrap_or_else(|_| Err(anyhow!("applying {} partition {} panicked", partition.0, partition.1)));
    if !matches!(ended, Ok(Applied::Stopped)) {
        // nobody listens when the service is ending anyway
        let _ = work.reports.send(Report::Ended(partition, ended));
    }
}

struct Fetch<P: Projection> {
    work: Arc<Work<P>>,
    queue: PartitionQueue<Context>,
    next_offset: i64,
    full: mpsc::Sender<Buffer<P::Event>>,
    empties: mpsc::Receiver<Buffer<P::Event>>,
    stop: CancellationToken,
}

impl<P: Projection> Fetch<P> {
    fn run(mut self) {
        let mut filling = Buffer::new(self.work.room());
        let mut first = Instant::now();
        while !self.stop.is_cancelled() {
            let wait = if filling.is_empty() { Duration::from_millis(100) } else { LINGER };
            match self.queue.poll(wait) {
                None => {}
                Some(Err(error)) => {
                    // nobody listens when the service is ending anyway
                    let _ = self.work.reports.send(Report::Fetch(error));
                }
                // left over from before a seek
                Some(Ok(message)) if message.offset() < self.next_offset => continue,
                Some(Ok(message)) => {
                    if filling.is_empty() {
                        first = Instant::now();
                    }
                    let payload = message.payload().unwrap_or_default();
                    let decoded = self.work.shared.projection.decode(payload);
                    filling.push(message.offset(), message.key().unwrap_or_default(), payload, decoded);
                    self.next_offset = message.offset() + 1;
                }
            }
            let is_full = filling.len() >= self.work.batch_size || filling.size() >= self.work.budget();
            if !is_full && (filling.is_empty() || first.elapsed() < LINGER) {
                continue;
            }
            let emptied = if is_full { self.empties.blocking_recv() } else { self.empties.try_recv().ok() };
            let applying = match emptied {
                Some(buffer) => self.full.blocking_send(std::mem::replace(&mut filling, buffer)).is_ok(),
                None => !is_full,
            };
            if !applying {
                return;
            }
        }
    }
}
