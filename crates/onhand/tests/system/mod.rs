//! A whole system of its own for each test: database, topics, group and directory, on the servers
//! that all tests share; its services are processes of the `onhand` binary.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{Environment, KafkaSettings, PostgresSettings, kafka};
use sandbox::shared;
use sqlx::{ConnectOptions, Connection, FromRow, PgConnection, postgres::PgRow};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long a condition may take to become true.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

pub struct System {
    pub dir: TempDir,
    pub kafka: KafkaSettings,
    pub topic: String,
    variables: Vec<(String, String)>,
    tokio: Runtime,
}

impl Drop for System {
    /// A test that fails shows what its processes said last.
    fn drop(&mut self) {
        let logs = self.dir.path().read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        for log in logs.filter(|path| thread::panicking() && path.extension().is_some_and(|end| end == "log")) {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = said.lines().collect();
            println!("{}:\n{}", log.display(), lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }
}

/// A service in a process of its own; its log is a file.
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child is not waited for yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Ends it at once, as a power failure would.
    pub fn kill(mut self) {
        assert!(self.child.try_wait().expect("a status").is_none(), "it has ended: {}", self.said());
        self.signal(libc::SIGKILL);
        self.child.wait().expect("a status");
    }

    /// Asks it to stop, which it must do well.
    pub fn stop(mut self) {
        self.signal(libc::SIGTERM);
        let status = until("it stops", || self.child.try_wait().expect("a status"));
        assert!(status.success(), "{status:?}: {}", self.said());
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl System {
    pub fn new(variables: &[(&str, &str)]) -> System {
        let dir = tempfile::tempdir().expect("a directory");
        let database = shared().fresh_database().expect("a database");
        let topic = shared().fresh_name("events");
        let mut all = shared().environment(&database);
        let own = [
            ("KAFKA_EVENTS_TOPIC", topic.clone()),
            ("KAFKA_ERRORS_TOPIC", shared().fresh_name("errors")),
            ("STOCK_GROUP", shared().fresh_name("stock")),
            ("IMPORT_DIRECTORY", dir.path().join("importer").display().to_string()),
        ];
        all.extend(own.map(|(name, value)| (name.to_owned(), value)));
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut env = Environment::of(all.clone());
        let kafka = KafkaSettings::read(&mut env);
        env.finish().expect("settings");
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        System { dir, kafka, topic, variables: all, tokio: tokio.expect("a runtime") }
    }

    /// The same system with a copy of its database, to be spoilt. Nobody may use the database now.
    pub fn copy(self: &System) -> System {
        let copy = format!("{}_copy_{}", self.database(), shared().fresh_name("n").replace('-', "_"));
        let sql = format!("CREATE DATABASE {copy} TEMPLATE {}", self.database());
        self.tokio.block_on(async {
            let mut server = self.connect("postgres").await;
            sqlx::raw_sql(&sql).execute(&mut server).await.expect("a copy");
            server.close().await.expect("closed");
        });
        let mut variables = self.variables.clone();
        variables.push(("POSTGRES_DB".into(), copy));
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let dir = tempfile::tempdir().expect("a directory");
        let (kafka, topic) = (self.kafka.clone(), self.topic.clone());
        System { dir, kafka, topic, variables, tokio: tokio.expect("a runtime") }
    }

    pub fn importer(&self) -> PathBuf {
        self.dir.path().join("importer")
    }

    fn database(&self) -> String {
        let names = self.variables.iter().rev();
        names.into_iter().find(|(name, _)| name == "POSTGRES_DB").expect("a name").1.clone()
    }

    async fn connect(&self, database: &str) -> PgConnection {
        let mut env = Environment::of(self.variables.clone());
        let postgres = PostgresSettings { database: database.to_owned(), ..PostgresSettings::read(&mut env) };
        runtime::postgres::options(&postgres, "test").connect().await.expect("a connection")
    }

    /// `onhand` with the settings of this system.
    pub fn onhand(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onhand"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end: its exit status, stdout and stderr.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        output(&mut self.onhand(arguments))
    }

    /// Starts a service.
    pub fn start(&self, service: &str) -> Process {
        self.spawn(&["run", service])
    }

    /// Starts a command that goes on until it is stopped.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        let log = self.dir.path().join(format!("{}.log", shared().fresh_name(arguments[0])));
        let mut command = self.onhand(arguments);
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).expect("a log")).spawn();
        Process { child: child.expect("a process"), log }
    }

    /// The answer of the database.
    pub fn rows<T: for<'r> FromRow<'r, PgRow> + Send + Unpin>(&self, sql: &'static str) -> Vec<T> {
        self.try_rows(sql).expect("rows")
    }

    /// The same; an error while the tables are not there yet.
    pub fn try_rows<T: for<'r> FromRow<'r, PgRow> + Send + Unpin>(&self, sql: &'static str) -> sqlx::Result<Vec<T>> {
        self.tokio.block_on(async {
            let mut connection = self.connect(&self.database()).await;
            let rows = sqlx::query_as(sql).fetch_all(&mut connection).await;
            connection.close().await?;
            rows
        })
    }

    /// Changes the database as nobody may.
    pub fn tamper(&self, sql: &str) {
        self.tokio.block_on(async {
            let mut connection = self.connect(&self.database()).await;
            let changed = sqlx::query(sql).execute(&mut connection).await.expect("changed");
            assert!(changed.rows_affected() > 0, "nothing was changed by {sql}");
            connection.close().await.expect("closed");
        });
    }

    /// Rows of a table; none while it is not there yet.
    pub fn count(&self, table: &str) -> i64 {
        let sql = match table {
            "transactions" => "SELECT count(*) FROM transactions",
            "waiting_sales" => "SELECT count(*) FROM waiting_sales",
            "outbox" => "SELECT count(*) FROM outbox",
            other => panic!("{other}?"),
        };
        match self.try_rows::<(i64,)>(sql) {
            Ok(rows) => rows[0].0,
            // undefined_table
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => 0,
            Err(error) => panic!("{table}: {error}"),
        }
    }

    /// Records of a topic; none while it is not there yet.
    pub fn records(&self, topic: &str) -> i64 {
        let consumer: BaseConsumer = kafka::consumer(&self.kafka, "test", "unused").create().expect("a consumer");
        let one = |partition| consumer.fetch_watermarks(topic, partition, WAIT_TIMEOUT).map_or(0, |(_, high)| high);
        (0..self.kafka.partitions).map(one).sum()
    }

    /// Whether every record of the topic is before the service's offset, and the outbox is empty.
    pub fn is_read(&self) -> bool {
        let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets";
        let read = self.try_rows::<(i64,)>(sql).map_or(0, |rows| rows[0].0);
        read > 0 && read == self.records(&self.topic) && self.count("outbox") == 0
    }

    /// Waits until it is.
    pub fn until_read(&self) {
        until("everything is read and said", || self.is_read().then_some(()));
    }
}

/// Runs a command to its end: its exit status, stdout and stderr.
pub fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// Waits for something that must come true.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < WAIT_TIMEOUT, "not in {WAIT_TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
