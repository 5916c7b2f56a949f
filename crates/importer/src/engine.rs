//! The importer's one thread: it lists `input/`, gives each file its slices of work in turn, takes
//! acknowledgements, and ends files whose rows are all acknowledged. Nothing in it waits for one
//! file alone.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::{OsStr, OsString},
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use runtime::health::Health;

use crate::{
    Settings,
    desk::{Chunk, Desk},
    directory::{Directory, remove, write_atomically},
    figures,
    finish::{Slot, complete, complete_left, decide},
    import::{Import, Slice, Stage},
    names::{Named, named},
    reading::Reading,
    receipt::{Progress, name_to_hex, now},
    scan::Scan,
    sender::Sender,
    source::open,
    trouble::Troubles,
    wake::Alarm,
};

/// How many files are open at a time, and how many are begun.
const OPEN: usize = 256;
const BEGUN: usize = 10_000;
/// How often a file's progress is written.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How long the broker may be silent before we say so.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the end may take.
const FAREWELL: Duration = Duration::from_secs(8);
const RETRY: Duration = Duration::from_secs(1);

/// All that the importer's thread knows.
pub(crate) struct Engine {
    settings: Settings,
    directory: Directory,
    health: Health,
    alarm: Alarm,
    desk: Desk,
    slot: Slot,
    scan: Scan,
    troubles: Troubles,
    /// Files on their way, by number, and their numbers by name.
    imports: HashMap<u64, Import>,
    numbers: HashMap<OsString, u64>,
    next_number: u64,
    /// Found, and not begun.
    waiting: VecDeque<OsString>,
    /// Those to be read now, in turn.
    queue: VecDeque<u64>,
    /// When to look at which file again.
    timers: BTreeSet<(Instant, u64)>,
    /// Nothing is sent before.
    pause: Instant,
    /// When the broker last acknowledged something, and how much.
    heard: (Instant, u64),
    silent: bool,
}

impl Engine {
    pub(crate) fn new(settings: Settings, health: Health, alarm: Alarm) -> Result<Engine> {
        let directory = Directory::create(&settings.directory)?;
        let desk = Desk::new(Sender::new(&settings.kafka)?);
        let slot = Slot::open(&directory).with_context(|| directory.progress.display().to_string())?;
        let now = Instant::now();
        let mut engine = Engine {
            slot,
            scan: Scan::new(settings.scan),
            settings,
            directory,
            health,
            alarm,
            desk,
            troubles: Troubles::default(),
            imports: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            waiting: VecDeque::new(),
            queue: VecDeque::new(),
            timers: BTreeSet::new(),
            pause: now,
            heard: (now, 0),
            silent: false,
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

    /// Works until it is told to stop.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.slot.is_ours() {
            self.health.ill("directory", format!("another importer works in {}", self.settings.directory.display()));
            self.alarm.wait(RETRY);
            if self.alarm.is_over() {
                return Ok(());
            }
        }
        self.health.well("directory");
        self.complete_what_a_crash_left();
        tracing::info!("files dropped into {} are imported", self.directory.input.display());
        while !self.alarm.is_over() {
            let busy = self.turn()?;
            let time = if busy { Duration::ZERO } else { self.time_to_sleep() };
            let woken = if self.desk.sender.flight().is_empty() {
                self.alarm.wait(time)
            } else {
                self.desk.sender.poll(time.min(Duration::from_millis(1)));
                self.alarm.wait(Duration::ZERO)
            };
            self.scan.hint(woken.more);
            for name in woken.names {
                self.changed(name);
            }
        }
        let end = Instant::now() + FAREWELL;
        while !self.desk.sender.flight().is_empty() && !self.desk.sender.failed() && Instant::now() < end {
            self.desk.sender.poll(Duration::from_millis(1));
            self.take_acknowledgements();
        }
        Ok(())
    }

    /// One round; whether there is more to do at once.
    fn turn(&mut self) -> Result<bool> {
        self.desk.sender.poll(Duration::ZERO);
        self.take_acknowledgements();
        self.recover()?;
        self.listen();
        let now = Instant::now();
        if now < self.pause || self.desk.widen()? {
            return Ok(false);
        }
        if self.waiting.is_empty() && self.scan.is_due(now) {
            self.look_for_files();
        }
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
        while self.queue.len() < OPEN && self.imports.len() < BEGUN {
            let Some(name) = self.waiting.pop_front() else { break };
            self.begin(name);
        }
        let Some(number) = self.queue.pop_front() else { return Ok(false) };
        Ok(self.work(number))
    }

    /// Gives a file its slice; whether Kafka takes more.
    fn work(&mut self, number: u64) -> bool {
        let Some(import) = self.imports.get_mut(&number) else { return true };
        let slice = match import.slice(&mut self.desk, self.settings.quiet) {
            Ok(slice) => slice,
            Err(error) => {
                // what was sent and not acknowledged is sent again when it can be read again
                import.rewind();
                let name = import.name.clone();
                self.troubles.tell(&self.directory, &name, &error.to_string());
                self.forget(number);
                return true;
            }
        };
        match slice {
            Slice::More => self.queue.push_back(number),
            Slice::Blocked => {
                self.queue.push_front(number);
                return false;
            }
            Slice::Park => {
                import.stage = Stage::Parked;
                self.timers.insert((Instant::now() + self.settings.quiet.min(self.settings.scan), number));
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

    /// Takes up a file of `input/`.
    fn begin(&mut self, name: OsString) {
        if self.numbers.contains_key(&name) {
            return;
        }
        let path = self.directory.input.join(&name);
        let opened = open(&path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if path.symlink_metadata().is_ok() {
                    let dangling = error.kind() == io::ErrorKind::NotFound;
                    let reason = if dangling { "is a link to nowhere".into() } else { error.to_string() };
                    self.troubles.tell(&self.directory, &name, &reason);
                }
                return;
            }
        };
        self.troubles.over(&self.directory, &name);
        self.next_number += 1;
        let number = self.next_number;
        let refused_file = self.directory.refused_of(&name);
        let shown = name.to_string_lossy().into_owned();
        let gzip = named(&name) == Named::Gzip;
        let mut reading = Reading::new(number, shown, gzip, Some(refused_file.clone()));
        let mut started_at = now();
        let known = Progress::read(&self.directory.progress_of(&name));
        if let Some(progress) = known.filter(|progress| progress.finished.is_none()) {
            let kept = std::fs::metadata(&refused_file).map_or(0, |metadata| metadata.len());
            if kept >= progress.refused_bytes {
                tracing::info!("going on with {name:?} at line {}", progress.line + 1);
                started_at = progress.started_at.clone();
                reading.go_on_from(progress);
            }
        } else {
            tracing::info!("importing {name:?} ({})", figures::size(metadata.len()));
        }
        reading.open(file);
        self.imports.insert(number, Import::new(name.clone(), path, reading, &metadata, started_at));
        self.numbers.insert(name, number);
        self.queue.push_back(number);
    }

    /// The file is not what it was: what was read of it stays on the topic, and it is read again.
    fn begin_anew(&mut self, number: u64, why: &str) {
        let Some(import) = self.imports.get(&number) else { return };
        let name = import.name.clone();
        tracing::warn!("{name:?} is imported anew: {why}");
        let removed = remove(&self.directory.progress_of(&name)).and(remove(&self.directory.refused_of(&name)));
        if let Err(error) = removed {
            self.troubles.tell(&self.directory, &name, &error.to_string());
        }
        self.forget(number);
        self.waiting.push_front(name);
    }

    fn forget(&mut self, number: u64) {
        if let Some(import) = self.imports.remove(&number) {
            self.numbers.remove(&import.name);
        }
    }

    /// Takes what Kafka has acknowledged.
    fn take_acknowledgements(&mut self) {
        while let Some(Chunk { file: number, mark, .. }) = self.desk.done() {
            let Some(import) = self.imports.get_mut(&number) else { continue };
            figures::acknowledged(&import.reading.durable, &mark);
            import.reading.landed(mark);
            let drained = import.reading.in_flight == 0;
            if drained && import.stage == Stage::Draining {
                self.finish(number);
            } else if drained || import.written.elapsed() > WRITE_EVERY {
                import.written = Instant::now();
                let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
                let path = self.directory.progress_of(&import.name);
                let written = serde_json::to_vec(&progress).map_err(io::Error::from);
                self.well(written.and_then(|json| write_atomically(&path, &json)));
            }
        }
    }

    /// Ends a file, all of whose rows are acknowledged.
    fn finish(&mut self, number: u64) {
        let Some(import) = self.imports.get_mut(&number) else { return };
        if import.decided.is_none() {
            let Some(mut ending) = import.ending.clone() else { return };
            if !ending.gone {
                match import.is_unchanged() {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => {
                        import.ending = None;
                        import.stage = Stage::Reading;
                        self.queue.push_back(number);
                        return;
                    }
                    // it was complete, and all of it was read
                    Ok(None) => ending.gone = true,
                    Err(error) => return self.finish_later(number, Err(error)),
                }
            }
            let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
            let event_type = import.reading.event_type();
            import.decided = decide(&self.directory, progress, event_type, import.identity, &ending, now());
        }
        let Some(decided) = &import.decided else { return };
        let done = self.slot.end(&self.directory, decided);
        if done.is_err() {
            // the slot is another file's next
            let path = self.directory.progress_of(&import.name);
            let kept = serde_json::to_vec(decided).map_err(io::Error::from);
            let kept = kept.and_then(|json| write_atomically(&path, &json));
            return self.finish_later(number, done.or(kept));
        }
        self.well(Ok(()));
        if let Some(import) = self.imports.get(&number) {
            tell(import);
        }
        self.forget(number);
        self.scan.hint(self.waiting.is_empty());
    }

    fn finish_later(&mut self, number: u64, done: io::Result<()>) {
        self.well(done);
        if let Some(import) = self.imports.get_mut(&number) {
            import.stage = Stage::Finishing;
            self.timers.insert((Instant::now() + RETRY, number));
        }
    }

    /// After a failure of the producer: whatever is not acknowledged is sent again.
    fn recover(&mut self) -> Result<()> {
        let Some(recovery) = self.desk.recover()? else { return Ok(()) };
        tracing::warn!(
            "Kafka did not take everything ({}): what is not acknowledged is sent again in {} ms",
            recovery.reason,
            recovery.pause.as_millis()
        );
        if !recovery.pause.is_zero() {
            self.health.ill("kafka", recovery.reason);
            self.silent = true;
        }
        self.pause = Instant::now() + recovery.pause;
        self.heard = (Instant::now(), 0);
        for (number, import) in &mut self.imports {
            if import.reading.in_flight == 0 && import.reading.here.byte == import.reading.durable.byte {
                continue;
            }
            if let Some(chunk) = recovery.oversized.as_ref().filter(|chunk| chunk.file == *number) {
                import.reading.is_oversized(chunk.start);
            }
            if import.stage != Stage::Reading {
                self.queue.push_back(*number);
            }
            import.rewind();
        }
        Ok(())
    }

    /// Notices when Kafka is silent, and when it is back.
    fn listen(&mut self) {
        let flight = self.desk.sender.flight();
        let (records, acknowledged) = (flight.records(), flight.acknowledged());
        let now = Instant::now();
        if records == 0 || acknowledged != self.heard.1 {
            if self.silent && acknowledged != self.heard.1 {
                self.silent = false;
                self.health.well("kafka");
            }
            self.heard = (now, acknowledged);
        } else if !self.silent && now.duration_since(self.heard.0) > SILENCE {
            self.silent = true;
            let broker = &self.settings.kafka.broker_url;
            self.health.ill("kafka", format!("waiting for Kafka at {broker}: {records} rows in flight"));
        }
    }

    fn look_for_files(&mut self) {
        let numbers = &self.numbers;
        match self.scan.list(&self.directory.input, |name| numbers.contains_key(name)) {
            Ok(names) => {
                self.waiting = names.into();
                self.troubles.keep(&self.directory, |path| path.symlink_metadata().is_ok());
                self.health.well("directory");
            }
            Err(error) => {
                self.well(Err(error));
                let _ = Directory::create(&self.settings.directory);
            }
        }
        figures::in_flight(self.desk.sender.flight().records(), self.imports.len());
    }

    /// The system told of a change.
    fn changed(&mut self, name: OsString) {
        match self.numbers.get(&name) {
            Some(number) => {
                if let Some(import) = self.imports.get_mut(number)
                    && import.stage == Stage::Parked
                {
                    import.stage = Stage::Reading;
                    self.queue.push_back(*number);
                }
            }
            None if matches!(named(&name), Named::Csv | Named::Gzip) => self.scan.hint(true),
            None => {}
        }
    }

    fn well(&self, done: io::Result<()>) {
        match done {
            Ok(()) => self.health.well("directory"),
            Err(error) => self.health.ill("directory", format!("{}: {error}", self.settings.directory.display())),
        }
    }

    fn time_to_sleep(&self) -> Duration {
        let timer = self.timers.first().map(|(time, _)| *time);
        let next = [Some(self.scan.due()), timer].into_iter().flatten().min();
        let next = next.map_or(self.settings.scan, |next| next.saturating_duration_since(Instant::now()));
        next.max(self.pause.saturating_duration_since(Instant::now())).min(Duration::from_secs(1))
    }

    /// Ends files that were acknowledged whole when the last process was killed, and those that
    /// have gone since.
    fn complete_what_a_crash_left(&mut self) {
        if let Some(decided) = self.slot.left() {
            let left = complete(&self.directory, &decided).and_then(|()| self.slot.clear());
            match left {
                Ok(()) => tracing::info!("{:?} was imported before the restart", decided.file),
                Err(error) => tracing::error!("completing {:?}: {error}", decided.file),
            }
        }
        for entry in std::fs::read_dir(&self.directory.progress).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() == Some(OsStr::new("json"))
                && let Err(error) = complete_left(&self.directory, &path)
            {
                tracing::error!("completing {}: {error}", path.display());
            }
        }
    }
}

/// Says how a file ended.
fn tell(import: &Import) {
    let Some(finished) = import.decided.as_ref().and_then(|decided| decided.finished.as_ref()) else { return };
    let receipt = &finished.receipt;
    let see = receipt.rejected.as_ref().map_or(String::new(), |name| format!(" (see rejected/{name})"));
    let rows = format!(
        "{} rows, {} accepted, {} refused{see} in {} ms",
        receipt.rows,
        receipt.accepted,
        receipt.refused,
        import.started.elapsed().as_millis()
    );
    match &receipt.error {
        None => tracing::info!("finished {:?}: {rows}", import.name),
        Some(error) => tracing::error!("{:?}: {error}; {rows}", import.name),
    }
    figures::finished(if finished.to_rejected { "rejected" } else { "done" });
}
