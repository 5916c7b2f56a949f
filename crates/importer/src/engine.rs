//! The importer's one thread: it lists `input/`, gives each file its slices of work in turn, takes
//! acknowledgements, and ends files whose rows are all acknowledged. Nothing in it waits for one
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
    sync::mpsc::SyncSender,
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
    find::{scan::Scan, watcher::ChangeWatcher},
    finish::{blocked_files::BlockedFiles, late_growth::LateGrowth},
    send::{
        producer::Producer,
        sink::{MAX_ACTIVE_FILES, Sink},
    },
};

/// How many files are open at a time.
const MAX_OPEN_FILES: usize = 64;
/// How many packed files may be open beside these, which wait for a partition that takes nothing.
const MAX_STALLED_PACKED_FILES: usize = 512;
/// How much longer a file waits for Kafka for each file that is begun, before it is looked at again.
const STALL_PAUSE_PER_FILE: Duration = Duration::from_micros(100);
/// How many names wait for their turn, other than by a listing.
const MAX_HINTED_NAMES: usize = 1_000;
/// How long the end may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(6);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// All that the importer's thread knows.
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
    /// Grown files that cannot be read on, of which that was said.
    not_taken_back: BTreeSet<PathBuf>,
    /// The failing file that is tried again, and since when.
    retried: Option<(u64, Instant)>,
    /// When to try the next failing file.
    next_try: Instant,
    /// Files on their way, by number, and their numbers by name.
    active: HashMap<u64, ActiveFile>,
    numbers: HashMap<OsString, u64>,
    next_number: u64,
    /// Found, and not begun.
    waiting: VecDeque<OsString>,
    /// Those to be read now, in turn.
    queue: VecDeque<u64>,
    /// Those that are open and not in the queue, since Kafka takes nothing of them.
    stalled: BTreeSet<u64>,
    /// When to look at which file again.
    timers: BTreeSet<(Instant, u64)>,
    /// Nothing is sent before.
    send_after: Instant,
    /// Where topics are made that have gone.
    tokio: Handle,
    shutdown: CancellationToken,
    /// When the broker last acknowledged something, and how much.
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
            next_try: now,
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
                "changes in {} are not told of ({error}); it is listed every {} ms",
                engine.directory.input.display(),
                engine.settings.scan.as_millis()
            );
        }
        Ok(engine)
    }

    /// A way to wake it.
    pub(crate) fn waker(&self) -> SyncSender<OsString> {
        self.watcher.waker()
    }

    /// Works until it is told to stop.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.lock.is_ours() {
            self.health.ill("directory", format!("another importer works in {}", self.settings.directory.display()));
            self.watcher.wait(RETRY_INTERVAL);
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        self.health.well("directory");
        self.finish_after_crash();
        tracing::info!("files dropped into {} are imported", self.directory.input.display());
        while !self.shutdown.is_cancelled() {
            let busy = self.turn()?;
            let time = if busy { Duration::ZERO } else { self.time_to_sleep() };
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
        let end = Instant::now() + SHUTDOWN_TIMEOUT;
        while !self.sink.producer.in_flight().is_empty() && !self.sink.producer.failed() && Instant::now() < end {
            self.sink.producer.wait();
            self.take_acknowledgements();
        }
        Ok(())
    }

    /// One round; whether there is more to do at once.
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
            // these have their turn one at a time
            if !self.blocked.is_failing(&name) {
                self.begin(name);
            }
        }
        let Some(number) = self.queue.pop_front() else { return Ok(false) };
        Ok(self.work(number))
    }

    /// Gives a file its slice; false: it can do nothing now, and another one may not either.
    fn work(&mut self, number: u64) -> bool {
        self.stalled.remove(&number);
        let begun = self.active.len() as u32;
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
                let pause = self.settings.quiet.min(self.settings.scan) + STALL_PAUSE_PER_FILE * begun;
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

    /// Reports a part as healthy or not, by what has just been done there.
    fn report_io(&self, part: &'static str, done: io::Result<()>) {
        match done {
            Ok(()) => self.health.well(part),
            Err(error) => self.health.ill(part, format!("{}: {error}", self.settings.directory.display())),
        }
    }

    fn time_to_sleep(&self) -> Duration {
        let timer = self.timers.first().map(|(time, _)| *time);
        let next_try = self.blocked.any_failing().then_some(self.next_try);
        let next = [Some(self.scan.due()), timer, self.pending.due(), next_try].into_iter().flatten().min();
        let next = next.map_or(self.settings.scan, |next| next.saturating_duration_since(Instant::now()));
        next.max(self.send_after.saturating_duration_since(Instant::now())).min(Duration::from_secs(1))
    }
}
