//! An import directory, its own topics, and the importer's binary running on them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use importer::Receipt;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const HEADER: &str = "transaction_id,event_type,date,store_number,item_number,value";

/// Row `number`: every 35th row belongs to the same card, and `value` counts up.
pub(crate) fn row(number: usize) -> String {
    let (store, item, value) = (number % 5, number % 7, number + 1);
    format!("00000000-0000-4000-8000-{number:012},incoming,2019-04-14T03:47:13Z,{store},{item},{value}")
}

/// A CSV file with these rows.
pub(crate) fn csv(rows: impl IntoIterator<Item = usize>) -> String {
    rows.into_iter().fold(format!("{HEADER}\n"), |text, number| text + &row(number) + "\n")
}

/// A record of a topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) payload: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Record {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.payload).expect("JSON")
    }

    /// The number that [`row`] was given.
    pub(crate) fn number(&self) -> usize {
        let value = self.json()["value"].as_str().and_then(|value| value.parse::<usize>().ok());
        value.expect("a value") - 1
    }
}

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) broker: String,
    pub(crate) events: String,
    pub(crate) errors: String,
    pub(crate) importer: Option<Child>,
    settings: Vec<(String, String)>,
}

impl Fixture {
    /// On the tests' Kafka, with no importer started.
    pub(crate) fn new() -> Fixture {
        Fixture::at(&sandbox::shared().broker)
    }

    pub(crate) fn at(broker: &str) -> Fixture {
        let shared = sandbox::shared();
        let fixture = Fixture {
            directory: tempfile::tempdir().expect("a directory"),
            broker: broker.into(),
            events: shared.fresh_name("events"),
            errors: shared.fresh_name("errors"),
            importer: None,
            settings: Vec::new(),
        };
        for folder in ["input", "done", "rejected"] {
            fs::create_dir(fixture.path(folder)).expect("a folder");
        }
        fixture
    }

    /// With a running importer.
    pub(crate) fn started() -> Fixture {
        let mut fixture = Fixture::new();
        fixture.start();
        fixture
    }

    /// With a running importer, after [`Fixture::set`].
    pub(crate) fn start_now(mut self) -> Fixture {
        self.start();
        self
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Fixture {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut command = Command::new(program);
        command
            .env("IMPORT_DIRECTORY", self.directory.path())
            .env("KAFKA_BROKER_URL", &self.broker)
            .env("KAFKA_EVENTS_TOPIC", &self.events)
            .env("KAFKA_ERRORS_TOPIC", &self.errors)
            .env("KAFKA_TOPIC_PARTITIONS", "3")
            // some tests' files end without a line break
            .env("IMPORT_UNSURE_MS", "1000")
            .env("LOG_LEVEL", "info")
            .envs(self.settings.iter().cloned())
            .stderr(Stdio::from(log));
        command
    }

    pub(crate) fn start(&mut self) {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_importer")));
        self.importer = Some(command.spawn().expect("the importer"));
    }

    /// If the tests run as root, starts the importer as another user, who cannot detect the writers of the
    /// tests' files. Returns whether that is so.
    pub(crate) fn start_as_another_user(&mut self) -> bool {
        // SAFETY: only returns the user's id
        if unsafe { libc::geteuid() } != 0 {
            self.start();
            return false;
        }
        let program = self.path("importer");
        fs::copy(env!("CARGO_BIN_EXE_importer"), &program).expect("a copy");
        let mut paths = vec![self.directory.path().to_owned(), program.clone()];
        paths.extend(["input", "done", "rejected"].map(|folder| self.path(folder)));
        for path in paths {
            std::os::unix::fs::chown(&path, Some(65_534), None).expect("chown");
        }
        let mut command = self.command(&program);
        self.importer = Some(command.uid(65_534).current_dir("/").spawn().expect("the importer"));
        true
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut importer) = self.importer.take() {
            importer.kill().expect("kill");
            importer.wait().expect("its end");
        }
    }

    /// Sends SIGTERM; returns how long the importer took to end.
    pub(crate) fn stop(&mut self) -> Duration {
        let mut importer = self.importer.take().expect("an importer");
        let begun = Instant::now();
        // SAFETY: a signal to our own child
        unsafe { libc::kill(importer.id() as i32, libc::SIGTERM) };
        let status = importer.wait().expect("its end");
        assert!(status.success(), "{status}: {}", self.log());
        begun.elapsed()
    }

    /// The importer's peak memory in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let pid = self.importer.as_ref().expect("an importer").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn input(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path("input").join(Path::new(name.as_ref()))
    }

    /// A complete file, moved in.
    pub(crate) fn drop_in(&self, name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) {
        let hidden = self.input(".coming");
        fs::write(&hidden, content).expect("a file");
        fs::rename(hidden, self.input(name)).expect("its name");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until `found` returns something.
    pub(crate) fn wait<T>(&self, what: &str, found: impl FnMut() -> Option<T>) -> T {
        self.wait_for(what, Duration::from_secs(30), found)
    }

    /// The same for what may take longer, such as a pause that has doubled several times.
    pub(crate) fn wait_long<T>(&self, what: &str, found: impl FnMut() -> Option<T>) -> T {
        self.wait_for(what, Duration::from_secs(120), found)
    }

    fn wait_for<T>(&self, what: &str, time: Duration, mut found: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + time;
        loop {
            if let Some(found) = found() {
                return found;
            }
            if Instant::now() > until {
                let log = self.log();
                let lines: Vec<_> = log.lines().rev().take(30).collect();
                panic!("waited in vain for {what}; the log, last line first:\n{}", lines.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        self.wait(text, || self.log().contains(text).then_some(()));
    }

    /// Waits for `folder/NAME.receipt.json`.
    pub(crate) fn receipt(&self, folder: &str, name: &str) -> Receipt {
        let path = self.path(folder).join(format!("{name}.receipt.json"));
        self.wait(&path.display().to_string(), || serde_json::from_slice(&fs::read(&path).ok()?).ok())
    }

    /// Waits for a receipt; returns its rows, accepted, refused, and error.
    pub(crate) fn counts(&self, folder: &str, name: &str) -> (u64, u64, u64, Option<String>) {
        let receipt = self.receipt(folder, name);
        (receipt.rows, receipt.accepted, receipt.refused, receipt.error)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The text of a file; empty if it does not exist.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The names in a folder.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The progress records.
    pub(crate) fn in_progress(&self) -> Vec<String> {
        let mut names = self.names("progress");
        names.retain(|name| name.ends_with(".json") && !name.starts_with('.'));
        names
    }

    /// A consumer of the events topic, from its current end.
    pub(crate) fn follow_events(&self) -> BaseConsumer {
        let consumer = consumer(&self.broker);
        let metadata = consumer.fetch_metadata(Some(&self.events), Duration::from_secs(10)).expect("metadata");
        let mut assignment = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            let (_, end) = watermarks(&consumer, &self.events, partition.id());
            assignment.add_partition_offset(&self.events, partition.id(), Offset::Offset(end)).expect("a partition");
        }
        consumer.assign(&assignment).expect("assigned");
        consumer
    }

    /// All records on the events topic, each partition's in its order.
    pub(crate) fn events(&self) -> Vec<Record> {
        read_topic(&self.broker, &self.events)
    }

    /// The numbers of the rows on the events topic, sorted.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        let mut numbers: Vec<_> = self.events().iter().map(Record::number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// All records on the errors topic, by file and line.
    pub(crate) fn errors(&self) -> Vec<Record> {
        let mut records = read_topic(&self.broker, &self.errors);
        records.sort_by_key(|record| {
            let json = record.json();
            (json["file"].to_string(), json["line"].as_u64())
        });
        records
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.kill();
    }
}

fn consumer(broker: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", "tests")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer")
}

/// All records on a topic.
pub(crate) fn read_topic(broker: &str, topic: &str) -> Vec<Record> {
    let timeout = Duration::from_secs(10);
    let consumer = consumer(broker);
    let metadata = consumer.fetch_metadata(Some(topic), timeout).expect("metadata");
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = watermarks(&consumer, topic, partition.id());
        left += high - low;
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a partition");
    }
    consumer.assign(&assignment).expect("assigned");
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let mut records = Vec::new();
    while records.len() < left as usize {
        let message = consumer.poll(timeout).expect("a record in time").expect("a record");
        let headers = message
            .headers()
            .map(|headers| headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect());
        records.push(Record {
            partition: message.partition(),
            key: text(message.key()),
            payload: text(message.payload()),
            headers: headers.unwrap_or_default(),
        });
    }
    records
}

/// Where a partition begins and ends; a new partition may have no leader yet.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)) {
            Ok(watermarks) => return watermarks,
            Err(error) if Instant::now() > until => panic!("{topic}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A gzip file.
pub(crate) fn gzip(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_ref()).expect("packed");
    encoder.finish().expect("packed")
}
