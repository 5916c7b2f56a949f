//! The importer's one thread: it lists `input/`, gives each file its slices of work in turn, takes
//! acknowledgements, and ends files whose rows are all acknowledged. Nothing in it waits for one
//! file alone.

mod begin;
mod broker;
mod ends;
mod lock;
mod read_on;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    io,
    path::PathBuf,
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ends::Ends;
use lock::Lock;
use runtime::health::Health;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    desk::{BEGUN, Desk},
    directory::Directory,
    import::{Import, Slice, Stage},
    late_growth::LateGrowth,
    scan::Scan,
    sender::Sender,
    trouble::Troubles,
    wake::Alarm,
};

/// How many files are open at a time.
const OPEN: usize = 64;
/// How many packed files may be open beside these, which wait for a partition that takes nothing.
const STALLED: usize = 512;
/// How much longer a file waits for Kafka for each file that is begun, before it is looked at again.
const STALLED_EACH: Duration = Duration::from_micros(100);
/// How many names wait for their turn, other than by a listing.
const NAMES: usize = 1_000;
/// How long the end may take.
const FAREWELL: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_secs(1);

/// All that the importer's thread knows.
pub(crate) struct Engine {
    settings: Settings,
    directory: Directory,
    health: Health,
    alarm: Alarm,
    desk: Desk,
    lock: Lock,
    ends: Ends,
    scan: Scan,
    troubles: Troubles,
    late_growth: LateGrowth,
    /// Grown files that cannot be read on, of which that was said.
    not_read_on: BTreeSet<PathBuf>,
    /// The failing file that is tried again, and since when.
    trying: Option<(u64, Instant)>,
    /// When to try the next failing file.
    next_try: Instant,
    /// Files on their way, by number, and their numbers by name.
    imports: HashMap<u64, Import>,
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
    pause: Instant,
    /// Where topics are made that have gone.
    tokio: Handle,
    shutdown: CancellationToken,
    /// When the broker last acknowledged something, and how much.
    heard: (Instant, u64),
    silent: bool,
    looked_at_partitions: Instant,
}

impl Engine {
    /// Must be called on a Tokio runtime.
    pub(crate) fn new(settings: Settings, health: Health, shutdown: CancellationToken) -> Result<Engine> {
        let alarm = Alarm::new();
        let directory = Directory::create(&settings.directory)?;
        let desk = Desk::new(Sender::new(&settings.kafka)?);
        let lock = Lock::open(&directory).with_context(|| directory.progress.display().to_string())?;
        let late_growth = LateGrowth::start(&directory, alarm.bell()).context("starting a thread")?;
        let now = Instant::now();
        let mut engine = Engine {
            lock,
            ends: Ends::default(),
            scan: Scan::new(settings.scan),
            settings,
            directory,
            health,
            alarm,
            desk,
            troubles: Troubles::default(),
            late_growth,
            not_read_on: BTreeSet::new(),
            trying: None,
            next_try: now,
            imports: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            waiting: VecDeque::new(),
            queue: VecDeque::new(),
            stalled: BTreeSet::new(),
            timers: BTreeSet::new(),
            pause: now,
            tokio: Handle::current(),
            shutdown,
            heard: (now, 0),
            silent: false,
            looked_at_partitions: now,
        };
        if engine.settings.watch
            && let Err(error) = engine.alarm.watch(&engine.directory.input)
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
    pub(crate) fn bell(&self) -> SyncSender<OsString> {
        self.alarm.bell()
    }

    /// Works until it is told to stop.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.lock.is_ours() {
            self.health.ill("directory", format!("another importer works in {}", self.settings.directory.display()));
            self.alarm.wait(RETRY);
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        self.health.well("directory");
        self.complete_what_a_crash_left();
        tracing::info!("files dropped into {} are imported", self.directory.input.display());
        while !self.shutdown.is_cancelled() {
            let busy = self.turn()?;
            let time = if busy { Duration::ZERO } else { self.time_to_sleep() };
            let woken = if self.desk.sender.flight().is_empty() {
                self.alarm.wait(time)
            } else {
                if !time.is_zero() {
                    self.desk.sender.wait();
                }
                self.alarm.wait(Duration::ZERO)
            };
            self.scan.hint(woken.more);
            for name in woken.names {
                self.changed(name);
            }
        }
        let end = Instant::now() + FAREWELL;
        while !self.desk.sender.flight().is_empty() && !self.desk.sender.failed() && Instant::now() < end {
            self.desk.sender.wait();
            self.take_acknowledgements();
        }
        Ok(())
    }

    /// One round; whether there is more to do at once.
    fn turn(&mut self) -> Result<bool> {
        self.desk.sender.poll();
        self.take_acknowledgements();
        self.recover()?;
        self.listen();
        let now = Instant::now();
        if now < self.pause || self.desk.sender.failed() {
            return Ok(false);
        }
        if self.waiting.is_empty() && self.scan.is_due(now) {
            self.look_for_files();
        }
        self.try_ends_again(now);
        self.take_copies();
        self.read_on();
        self.try_failing(now);
        while let Some((time, number)) = self.timers.first().copied()
            && time <= now
        {
            self.timers.remove(&(time, number));
            match self.imports.get_mut(&number) {
                Some(import) if import.stage == Stage::Parked => {
                    import.stage = Stage::Reading;
                    self.queue.push_back(number);
                }
                Some(import) if import.stage == Stage::Finishing => self.finish(number),
                _ => {}
            }
        }
        while self.queue.len() + self.stalled.len().saturating_sub(STALLED) < OPEN
            && ((self.imports.len() + self.ends.copies()) as u64) < BEGUN
        {
            let Some(name) = self.waiting.pop_front() else { break };
            // these have their turn one at a time
            if !self.troubles.is_failing(&name) {
                self.begin(name);
            }
        }
        let Some(number) = self.queue.pop_front() else { return Ok(false) };
        Ok(self.work(number))
    }

    /// Gives a file its slice; false: it can do nothing now, and another one may not either.
    fn work(&mut self, number: u64) -> bool {
        self.stalled.remove(&number);
        let begun = self.imports.len() as u32;
        let Some(import) = self.imports.get_mut(&number) else { return true };
        let slice = match import.slice(&mut self.desk, self.settings.quiet_times()) {
            Ok(slice) => slice,
            Err(error) => {
                import.failed(error.to_string());
                if import.reading.in_flight == 0 {
                    self.give_up(number);
                }
                return true;
            }
        };
        match slice {
            Slice::More => self.queue.push_back(number),
            Slice::Wait => {
                self.queue.push_back(number);
                return false;
            }
            Slice::Park => {
                import.stage = Stage::Parked;
                self.timers.insert((Instant::now() + self.settings.quiet.min(self.settings.scan), number));
            }
            Slice::Stalled => {
                import.stage = Stage::Parked;
                if import.reading.source.is_some() {
                    self.stalled.insert(number);
                }
                let pause = self.settings.quiet.min(self.settings.scan) + STALLED_EACH * begun;
                self.timers.insert((Instant::now() + pause, number));
            }
            Slice::Ended => {
                import.stage = Stage::Draining;
                if import.reading.in_flight == 0 {
                    self.finish(number);
                }
            }
            Slice::Anew(why) => self.begin_anew(number, &why),
        }
        true
    }

    /// Reports a part as healthy or not, by what has just been done there.
    fn note(&self, part: &'static str, done: io::Result<()>) {
        match done {
            Ok(()) => self.health.well(part),
            Err(error) => self.health.ill(part, format!("{}: {error}", self.settings.directory.display())),
        }
    }

    fn time_to_sleep(&self) -> Duration {
        let timer = self.timers.first().map(|(time, _)| *time);
        let next_try = self.troubles.any_failing().then_some(self.next_try);
        let next = [Some(self.scan.due()), timer, self.ends.due(), next_try].into_iter().flatten().min();
        let next = next.map_or(self.settings.scan, |next| next.saturating_duration_since(Instant::now()));
        next.max(self.pause.saturating_duration_since(Instant::now())).min(Duration::from_secs(1))
    }
}
