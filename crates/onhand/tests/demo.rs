//! `onhand demo` on servers that are not its own.

use std::{
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::RDKafkaErrorCode,
};
use runtime::{Environment, KafkaSettings, PostgresSettings, kafka, postgres};
use sqlx::{ConnectOptions, PgConnection};

const TOPICS: [&str; 2] = ["onhand-demo-events", "onhand-demo-errors"];
const TIMEOUT: Duration = Duration::from_secs(30);

/// The tests' servers, where only this test runs demos.
struct Servers {
    tokio: tokio::runtime::Runtime,
    admin: AdminClient<DefaultClientContext>,
    connection: PgConnection,
}

impl Servers {
    fn new() -> Servers {
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let mut env = Environment::of(sandbox::shared().environment("postgres"));
        let (kafka, postgres) = (KafkaSettings::read(&mut env), PostgresSettings::read(&mut env));
        let _in = tokio.enter();
        let admin = kafka::client(&kafka, "test").create().expect("a client");
        let connection = tokio.block_on(postgres::options(&postgres, "test").connect()).expect("a connection");
        drop(_in);
        Servers { tokio, admin, connection }
    }

    fn sql(&mut self, sql: &str) {
        self.tokio.block_on(sqlx::raw_sql(sql).execute(&mut self.connection)).expect("done");
    }

    fn database_exists(&mut self) -> bool {
        let sql = "SELECT count(*) = 1 FROM pg_database WHERE datname = 'onhand_demo'";
        self.tokio.block_on(sqlx::query_scalar(sql).fetch_one(&mut self.connection)).expect("an answer")
    }

    fn create_topic(&self, topic: &str) {
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let created = self.tokio.block_on(self.admin.create_topics([&new], &AdminOptions::new()));
        created.expect("an answer")[0].as_ref().expect("created");
        self.until(topic, true);
    }

    fn delete_topics(&self) {
        for topic in TOPICS {
            match &self.tokio.block_on(self.admin.delete_topics(&[topic], &AdminOptions::new())).expect("an answer")[0]
            {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => self.until(topic, false),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn until(&self, topic: &str, exists: bool) {
        let begun = Instant::now();
        while self.topics().iter().any(|name| name == topic) != exists {
            assert!(begun.elapsed() < TIMEOUT, "{topic}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn topics(&self) -> Vec<String> {
        let metadata = self.admin.inner().fetch_metadata(None, TIMEOUT).expect("an answer");
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    fn clean(&mut self) {
        self.sql("DROP DATABASE IF EXISTS onhand_demo");
        self.delete_topics();
    }
}

fn demo(dir: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onhand"));
    command.args(["demo", "--once"]).current_dir(dir).envs(sandbox::shared().environment("postgres"));
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_demo_can_be_run_again_and_deletes_nothing_that_it_did_not_create() {
    let mut servers = Servers::new();
    servers.clean();
    let dir = tempfile::tempdir().unwrap();
    let ends_well = || {
        let (code, screen, errors) = demo(dir.path());
        assert_eq!(code, Some(0), "{screen}\n{errors}");
        assert!(screen.contains("Of 14 rows the importer accepted 12 and refused 2; of these 12 events"), "{screen}");
        assert!(screen.contains("service applied 9, knew 1 already and refused 2 in the end"), "{screen}");
        assert!(screen.contains("everything holds"), "{screen}");
        assert!(!screen.contains('\x1b'), "colours without a terminal");
    };
    ends_well();
    ends_well();

    // topics that another one of the same name created
    servers.delete_topics();
    servers.create_topic(TOPICS[0]);
    let (code, _, errors) = demo(dir.path());
    assert!(code == Some(2) && errors.contains("there is a topic onhand-demo-events at "), "{errors}");
    assert!(errors.contains("that this demo did not create"), "{errors}");
    assert!(servers.topics().contains(&TOPICS[0].to_owned()) && servers.database_exists(), "nothing is deleted");
    servers.delete_topics();
    ends_well();

    // somebody's database of that name
    servers.sql("COMMENT ON DATABASE onhand_demo IS 'mine'");
    let (code, _, errors) = demo(dir.path());
    assert!(code == Some(2) && errors.contains("there is a database onhand_demo at "), "{errors}");
    assert!(errors.contains("that onhand demo did not create"), "{errors}");
    assert!(servers.database_exists() && servers.topics().contains(&TOPICS[0].to_owned()), "nothing is deleted");
    servers.clean();
}
