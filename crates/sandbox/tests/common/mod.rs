//! What the sandbox's tests share: waiting, and talking to both servers.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use sandbox::PgAddress;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};

/// Fails unless `condition` comes true within half a minute.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process runs; one that has ended and was not reaped does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

pub(crate) fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}

/// Runs statements in a database and returns the last one's first column, if it has rows.
pub(crate) fn sql(at: &PgAddress, database: &str, statements: &str) -> sqlx::Result<Option<i32>> {
    let options = PgConnectOptions::new()
        .host(&at.host)
        .port(at.port)
        .username(&at.user)
        .password(&at.password)
        .database(database);
    now(async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let rows = sqlx::raw_sql(statements).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows.last().map(|row| row.get(0)))
    })
}

fn client(broker: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", broker).set("group.id", "tests");
    client
}

pub(crate) fn create_topic(broker: &str, topic: &str) {
    let admin: AdminClient<_> = client(broker).create().unwrap();
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let created = now(admin.create_topics([&new], &AdminOptions::new())).unwrap();
    assert_eq!(created, [Ok(topic.to_owned())]);
}

/// Whether the broker answers within this time.
pub(crate) fn answers(broker: &str, timeout: Duration) -> bool {
    let consumer: BaseConsumer = client(broker).create().unwrap();
    consumer.fetch_metadata(None, timeout).is_ok()
}

/// Sends one record and waits for its acknowledgement.
pub(crate) fn produce(broker: &str, topic: &str, payload: &str) {
    let producer: BaseProducer = client(broker).create().unwrap();
    producer.send(BaseRecord::<str, str>::to(topic).payload(payload)).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// The first record of a topic.
pub(crate) fn consume(broker: &str, topic: &str) -> String {
    let consumer: BaseConsumer = client(broker).create().unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let mut payload = None;
    eventually("a record", || {
        let polled = consumer.poll(Duration::from_millis(100));
        payload = polled.and_then(Result::ok).map(|r| r.payload().unwrap_or_default().to_vec());
        payload.is_some()
    });
    String::from_utf8(payload.unwrap()).unwrap()
}

/// A directory that anyone may enter, unlike the parent that it is in when `private`.
pub(crate) fn root(private: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let mode = if private { 0o700 } else { 0o755 };
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(mode)).unwrap();
    let root = parent.path().join("onhand");
    (parent, root)
}

/// Removes the Postgres data that had to go to another place than `root`.
pub(crate) fn remove_elsewhere(root: &Path) {
    if let Ok(elsewhere) = fs::read_link(root.join("postgres")) {
        fs::remove_dir_all(elsewhere).unwrap();
    }
}
