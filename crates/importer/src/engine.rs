//! The importer's single thread: it lists `input/`, gives each file its slices of work in turn, takes
//! acknowledgements, and finishes files whose rows are all acknowledged. Nothing in it waits for one
//! file alone.

pub(crate) mod active_file;
mod finishing;
mod lock;
mod recovery;
mod starting;
mod take_back;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use finishing::PendingFinishes;
use lock::Lock;
use runtime::health::Health;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    directory::Directory,
    engine::active_file::{ActiveFile, SliceResult, Stage},
    find::{
        scan::Scan,
        watcher::{ChangeWatcher, Waker},
    },
    finish::{blocked_files::BlockedFiles, late_growth::LateGrowth},
    send::{
        producer::Producer,
        sink::{MAX_ACTIVE_FILES, Sink},
    },
};

/// How many files are open at the same time.
const MAX_OPEN_FILES: usize = 64;
/// How many packed files may be open in addition, waiting for a partition that accepts nothing.
const MAX_STALLED_PACKED_FILES: usize = 512;
/// How much longer a stalled file is left alone for each active file, so that very many of them do not
/// keep the thread busy.
const STALL_PAUSE_PER_FILE: Duration = Duration::from_micros(100);
/// How many names reported by the watcher are kept; beyond that, the directory is listed.
const MAX_HINTED_NAMES: usize = 1_000;
/// How long a shutdown may wait for acknowledgements.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(6);
/// Between attempts to take the directory's lock, and between retries of failing files.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A duration as a field of a log line.
fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// The state of the importer's thread.
pub(crate) struct Engine {
    settings: Settings,
    directory: Directory,
    health: Health,
    watcher: ChangeWatcher,
    sink: Sink,
    lock: Lock,
    pending: PendingFinishes,
    scan: Scan,
    blocked: BlockedFiles,
    late_growth: LateGrowth,
    /// Grown files that cannot be taken back, and were reported.
    not_taken_back: BTreeSet<PathBuf>,
    /// The failing file that is being retried, and since when.
    retried: Option<(u64, Instant)>,
    /// When to retry the next failing file.
    next_retry: Instant,
    /// Started files by number, and their numbers by name.
    active: HashMap<u64, ActiveFile>,
    numbers: HashMap<OsString, u64>,
    next_number: u64,
    /// Found, and not started.
    waiting: VecDeque<OsString>,
    /// Active files to be read now, in turn.
    queue: VecDeque<u64>,
    /// Active files that stay open outside the queue, because Kafka accepts nothing from them.
    stalled: BTreeSet<u64>,
    /// When to look at which active file again.
    timers: BTreeSet<(Instant, u64)>,
    /// Nothing is sent before this time.
    send_after: Instant,
    /// Where missing topics are created again.
    tokio: Handle,
    shutdown: CancellationToken,
    /// When the broker last acknowledged something, and the number of acknowledgements then.
    last_acknowledged: (Instant, u64),
    is_silent: bool,
    partitions_checked: Instant,
}

impl Engine {
    /// Must be called on a Tokio runtime.
    pub(crate) fn new(settings: Settings, health: Health, shutdown: CancellationToken) -> Result<Engine> {
        let watcher = ChangeWatcher::new();
        let directory = Directory::create(&settings.directory)?;
        let sink = Sink::new(Producer::new(&settings.kafka)?);
        let lock = Lock::open(&directory).with_context(|| directory.progress.display().to_string())?;
        let late_growth = LateGrowth::start(&directory, watcher.waker()).context("starting a thread")?;
        let now = Instant::now();
        let mut engine = Engine {
            lock,
            pending: PendingFinishes::default(),
            scan: Scan::new(settings.scan),
            settings,
            directory,
            health,
            watcher,
            sink,
            blocked: BlockedFiles::default(),
            late_growth,
            not_taken_back: BTreeSet::new(),
            retried: None,
            next_retry: now,
            active: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            waiting: VecDeque::new(),
            queue: VecDeque::new(),
            stalled: BTreeSet::new(),
            timers: BTreeSet::new(),
            send_after: now,
            tokio: Handle::current(),
            shutdown,
            last_acknowledged: (now, 0),
            is_silent: false,
            partitions_checked: now,
        };
        if engine.settings.watch
            && let Err(error) = engine.watcher.watch(&engine.directory.input)
        {
            tracing::warn!(
                directory = %engine.directory.input.display(),
                %error,
                scan_ms = millis(engine.settings.scan),
                "cannot watch input/ for changes; it is only listed regularly"
            );
        }
        Ok(engine)
    }

    /// Wakes the thread.
    pub(crate) fn waker(&self) -> Waker {
        self.watcher.waker()
    }

    /// Runs until `shutdown`.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.lock.is_ours() {
            self.health.unhealthy("directory", format!("another importer uses {}", self.settings.directory.display()));
            self.watcher.wait(RETRY_INTERVAL);
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        self.health.healthy("directory");
        self.finish_after_crash();
        tracing::info!(directory = %self.directory.input.display(), "importing files dropped into input/");
        while !self.shutdown.is_cancelled() {
            let is_busy = self.turn()?;
            let time = if is_busy { Duration::ZERO } else { self.time_to_sleep() };
            let changes = if self.sink.producer.in_flight().is_empty() {
                self.watcher.wait(time)
            } else {
                if !time.is_zero() {
                    self.sink.producer.wait();
                }
                self.watcher.wait(Duration::ZERO)
            };
            self.scan.hint(changes.overflowed);
            for name in changes.names {
                self.changed(name);
            }
        }
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while !self.sink.producer.in_flight().is_empty() && !self.sink.producer.failed() && Instant::now() < deadline {
            self.sink.producer.wait();
            self.take_acknowledgements();
        }
        Ok(())
    }

    /// One round; returns whether there is more to do immediately.
    fn turn(&mut self) -> Result<bool> {
        self.sink.producer.poll();
        self.take_acknowledgements();
        self.recover()?;
        self.check_kafka();
        let now = Instant::now();
        if now < self.send_after || self.sink.producer.failed() {
            return Ok(false);
        }
        if self.waiting.is_empty() && self.scan.is_due(now) {
            self.list_input();
        }
        self.retry_finishes(now);
        self.take_finished_copies();
        self.take_back_grown();
        self.retry_blocked(now);
        while let Some((time, number)) = self.timers.first().copied()
            && time <= now
        {
            self.timers.remove(&(time, number));
            match self.active.get_mut(&number) {
                Some(file) if file.stage == Stage::Idle => {
                    file.stage = Stage::Reading;
                    self.queue.push_back(number);
                }
                Some(file) if file.stage == Stage::Finishing => self.finish(number),
                _ => {}
            }
        }
        while self.queue.len() + self.stalled.len().saturating_sub(MAX_STALLED_PACKED_FILES) < MAX_OPEN_FILES
            && ((self.active.len() + self.pending.copies()) as u64) < MAX_ACTIVE_FILES
        {
            let Some(name) = self.waiting.pop_front() else { break };
            // failing files are retried one at a time
            if !self.blocked.is_failing(&name) {
                self.start(name);
            }
        }
        let Some(number) = self.queue.pop_front() else { return Ok(false) };
        Ok(self.work(number))
    }

    /// Gives a file its slice. Returns false if it can do nothing now, and others may not either.
    fn work(&mut self, number: u64) -> bool {
        self.stalled.remove(&number);
        let active_files = self.active.len() as u32;
        let Some(file) = self.active.get_mut(&number) else { return true };
        let result = match file.run_slice(&mut self.sink, self.settings.quiet_periods()) {
            Ok(result) => result,
            Err(error) => {
                file.failed(error.to_string());
                if file.reader.in_flight == 0 {
                    self.give_up(number);
                }
                return true;
            }
        };
        match result {
            SliceResult::More => self.queue.push_back(number),
            SliceResult::WaitForKafka => {
                self.queue.push_back(number);
                return false;
            }
            SliceResult::Idle => {
                file.stage = Stage::Idle;
                self.timers.insert((Instant::now() + self.settings.quiet.min(self.settings.scan), number));
            }
            SliceResult::Stalled => {
                file.stage = Stage::Idle;
                if file.reader.source.is_some() {
                    self.stalled.insert(number);
                }
                let pause = self.settings.quiet.min(self.settings.scan) + STALL_PAUSE_PER_FILE * active_files;
                self.timers.insert((Instant::now() + pause, number));
            }
            SliceResult::Ended => {
                file.stage = Stage::Draining;
                if file.reader.in_flight == 0 {
                    self.finish(number);
                }
            }
            SliceResult::Restart(why) => self.restart(number, &why),
        }
        true
    }

    /// Reports a part of the directory as healthy, or as failing with this error.
    fn report_io(&self, part: &'static str, result: io::Result<()>) {
        match result {
            Ok(()) => self.health.healthy(part),
            Err(error) => self.health.unhealthy(part, format!("{}: {error}", self.settings.directory.display())),
        }
    }

    fn time_to_sleep(&self) -> Duration {
        let timer = self.timers.first().map(|(time, _)| *time);
        let next_retry = self.blocked.any_failing().then_some(self.next_retry);
        let next = [Some(self.scan.due()), timer, self.pending.due(), next_retry].into_iter().flatten().min();
        let next = next.map_or(self.settings.scan, |next| next.saturating_duration_since(Instant::now()));
        next.max(self.send_after.saturating_duration_since(Instant::now())).min(Duration::from_secs(1))
    }
}
