//! Kafka Connect in standalone mode with Debezium's JDBC sink, set up to be as fast as it can be.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use events::stock::EVENT_TYPE;

use crate::{measured::Process, world::Round};

const POM: &str = include_str!("../../peers/pom.xml");
/// Changes with the versions in the POM.
const NAME: &str = "bench-peers-debezium-3.5.0-kafka-4.3.1";

/// The schema that the topic's records do not carry. As a UUID, the key takes 16 bytes in the index.
const SCHEMA: &str = r#"{"type":"struct","optional":false,"fields":[
{"field":"transaction_id","type":"string","name":"io.debezium.data.Uuid","optional":false},
{"field":"event_type","type":"string","optional":false},
{"field":"date","type":"string","optional":false},
{"field":"store_number","type":"string","optional":false},
{"field":"item_number","type":"string","optional":false},
{"field":"value","type":"string","optional":false}]}"#;

/// Kafka Connect's and Debezium's jars, fetched from Maven Central at the first call.
pub(crate) fn jars() -> Result<PathBuf> {
    let alternative = "leave out `make bench-peers`";
    sandbox::maven::jars(NAME, POM, "Kafka Connect and Debezium's JDBC sink (73 MB)", alternative, &|line| {
        eprintln!("{line}");
    })
}

/// A running worker.
pub(crate) struct Connect {
    process: Process,
    log: PathBuf,
}

impl Connect {
    /// Starts a worker that writes the round's topic to the table `journal` of its database.
    pub(crate) fn start(jars: &Path, round: &Round) -> Result<Connect> {
        let file = |name: &str| round.directory.join(name);
        fs::write(file("worker.properties"), worker(round, &file("connect.offsets")))?;
        fs::write(file("sink.properties"), sink(round)?)?;
        let log = file("connect.log");
        let mut java = sandbox::java::command(jars, "WARN");
        // against G1, Java's choice here, a fifth less processor time a row
        java.args(["-XX:+UseParallelGC", "-Xms1g", "-Xmx1g", "org.apache.kafka.connect.cli.ConnectStandalone"]);
        java.args([file("worker.properties"), file("sink.properties")]);
        let out = File::create(&log)?;
        java.stdout(out.try_clone()?).stderr(out);
        Ok(Connect { process: Process::spawn(java)?, log })
    }

    /// Fails, with the end of the log, if the worker has ended or one of its tasks has failed.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let log = fs::read_to_string(&self.log)?;
        let task_failed = log.contains("Task threw an uncaught and unrecoverable exception");
        if self.process.ensure_running().is_err() || task_failed {
            let lines: Vec<&str> = log.lines().collect();
            bail!("Kafka Connect failed:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        Ok(())
    }

    /// Stops it, and returns its processor time and peak memory.
    pub(crate) fn stop(self) -> Result<(Duration, f64)> {
        self.process.end(true)
    }
}

fn worker(round: &Round, offsets: &Path) -> String {
    format!(
        "bootstrap.servers={}
listeners=http://127.0.0.1:0
offset.storage.file.filename={}
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
consumer.max.poll.records=20000
consumer.fetch.min.bytes=1000000
consumer.fetch.max.wait.ms=100
consumer.max.partition.fetch.bytes=4000000
",
        round.kafka.broker_url,
        offsets.display()
    )
}

fn sink(round: &Round) -> Result<String> {
    let variable = |name: &str| {
        let found = round.variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).with_context(|| format!("{name} is not set"))
    };
    Ok(format!(
        "name=sink
connector.class=io.debezium.connector.jdbc.JdbcSinkConnector
tasks.max=2
topics={}
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=true
value.converter.schema.content={}
connection.url=jdbc:postgresql://{}/{}?options=-c%20synchronous_commit=off
connection.username={}
connection.password={}
insert.mode=upsert
primary.key.mode=record_value
primary.key.fields=transaction_id
collection.name.format=journal
schema.evolution=none
dialect.postgres.unnest.insert.enabled=true
batch.size=10000
",
        round.kafka.topic_of(&EVENT_TYPE),
        SCHEMA.replace('\n', ""),
        variable("POSTGRES_HOSTNAME")?,
        variable("POSTGRES_DB")?,
        variable("POSTGRES_USER")?,
        variable("POSTGRES_PASSWORD")?,
    ))
}
