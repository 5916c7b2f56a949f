//! One given file or stream, as `onhand import` imports it.

use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
};

use importer::{ImportReport, Input, RefusedRow, StoppedAt, check_file, import_file};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use runtime::{Environment, KafkaSettings, health::Health, kafka::ensure_topics};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, HEADER, csv, gzip, read_topic, row};

/// The settings of a fixture's Kafka, where the topics exist.
async fn kafka(fixture: &Fixture) -> KafkaSettings {
    let mut env = Environment::of([
        ("KAFKA_BROKER_URL".into(), fixture.broker.clone()),
        ("KAFKA_EVENTS_TOPIC".into(), fixture.events.clone()),
        ("KAFKA_ERRORS_TOPIC".into(), fixture.errors.clone()),
        ("KAFKA_TOPIC_PARTITIONS".into(), "3".into()),
    ]);
    let kafka = KafkaSettings::read(&mut env);
    ensure_topics(&kafka, &kafka.all_topics(), &Health::default(), &CancellationToken::new()).await.expect("topics");
    kafka
}

/// Imports on a thread that may block.
async fn import(kafka: &KafkaSettings, input: Input, shutdown: &CancellationToken) -> anyhow::Result<ImportReport> {
    let (kafka, shutdown) = (kafka.clone(), shutdown.clone());
    tokio::task::spawn_blocking(move || import_file(&kafka, input, &shutdown, |_| {})).await.expect("no panic")
}

fn stream(content: impl Into<Vec<u8>>) -> Input {
    Input::Stream(Box::new(Cursor::new(content.into())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_file_is_imported_and_left_where_it_is() {
    let fixture = Fixture::new();
    let (kafka, never) = (kafka(&fixture).await, CancellationToken::new());
    for name in ["a.csv", "a.csv.gz"] {
        let content = csv(0..1_000) + "bad";
        let bytes = if name.ends_with("gz") { gzip(content) } else { content.into_bytes() };
        let path = fixture.path(name);
        fs::write(&path, &bytes).expect("a file");
        let mut last = None;
        let report = import_file(&kafka, Input::File(path.clone()), &never, |progress| last = Some(progress));
        let ImportReport { receipt, stopped_at } = report.expect("a report");
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused, receipt.error), (1_001, 1_000, 1, None));
        assert_eq!((receipt.bytes, stopped_at), (bytes.len() as u64, None));
        let last = last.expect("progress was reported");
        assert_eq!(
            (last.bytes_done, last.bytes_total, last.accepted, last.refused, last.in_flight),
            (receipt.bytes, Some(receipt.bytes), 1_000, 1, 0)
        );
        assert!(path.exists());
    }
    assert_eq!(fixture.events().len(), 2_000);
    assert!(import(&kafka, Input::File(fixture.path("absent.csv")), &never).await.is_err());
    fs::write(fixture.path("other.csv"), "a,b\n").expect("a file");
    let report = import(&kafka, Input::File(fixture.path("other.csv")), &never).await.expect("a report");
    assert!(report.receipt.error.is_some_and(|error| error.contains("not a header")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_imported_packed_or_not() {
    let fixture = Fixture::new();
    let (kafka, never) = (kafka(&fixture).await, CancellationToken::new());
    let content = csv(0..20_000) + "bad";
    for packed in [false, true] {
        let bytes = if packed { gzip(&content) } else { content.clone().into_bytes() };
        let ImportReport { receipt, stopped_at } = import(&kafka, stream(bytes), &never).await.expect("a report");
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused, receipt.error), (20_001, 20_000, 1, None));
        assert_eq!((receipt.bytes, receipt.unterminated_last_line), (content.len() as u64, true));
        assert_eq!((receipt.file.as_str(), stopped_at), ("-", None));
    }
    let mut numbers = fixture.numbers();
    assert_eq!(numbers.len(), 40_000);
    numbers.dedup();
    assert_eq!(numbers, (0..20_000).collect::<Vec<_>>());
    let truncated = gzip(&content);
    let report = import(&kafka, stream(&truncated[..truncated.len() / 2]), &never).await.expect("a report");
    let error = report.receipt.error.expect("an error");
    assert!(error.starts_with("the gzip file is truncated after ") && report.receipt.accepted > 1_000, "{error}");
    for (content, error) in
        [("", "the file is empty"), ("\n\n", "the file has no header line, only blank ones"), (HEADER, "")]
    {
        let report = import(&kafka, stream(content), &never).await.expect("a report");
        assert_eq!(report.receipt.error.as_deref().unwrap_or_default(), error, "{content:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_stream_are_sent_again_when_the_producer_fails() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let fixture = Fixture::at(&cluster.bootstrap_servers());
    for topic in [&fixture.events, &fixture.errors] {
        cluster.create_topic(topic, 3, 1).expect("a topic");
    }
    let kafka = kafka(&fixture).await;
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let content = csv(0..5_000) + "bad\n";
        let report = import(&kafka, stream(content), &CancellationToken::new()).await.expect("a report");
        let receipt = report.receipt;
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused, receipt.error), (5_001, 5_000, 1, None));
    }
    let mut numbers: Vec<_> =
        read_topic(&fixture.broker, &fixture.events).iter().map(|record| record.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_import_reports_what_is_acknowledged_and_where_to_go_on() {
    let fixture = Fixture::new();
    let (kafka, shutdown) = (kafka(&fixture).await, CancellationToken::new());
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let content = csv(0..100);
    writer.write_all(content.as_bytes()).expect("written");
    writer.write_all(b"00000000-0000-4000").expect("written");
    let import = import(&kafka, Input::Stream(Box::new(reader)), &shutdown);
    let stop = async {
        let arrived = || fixture.wait("its rows", || (fixture.events().len() == 100).then_some(()));
        tokio::task::block_in_place(arrived);
        shutdown.cancel();
    };
    let (report, ()) = tokio::join!(import, stop);
    let report = report.expect("a report");
    assert_eq!((report.receipt.rows, report.receipt.accepted, report.receipt.error), (100, 100, None));
    assert_eq!(report.stopped_at, Some(StoppedAt { byte: content.len() as u64, line: 102 }));
}

fn delete_topic(fixture: &Fixture, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &fixture.broker).create().expect("a client");
    let deleted = futures::executor::block_on(admin.delete_topics(&[topic], &AdminOptions::new())).expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_during_an_import_is_created_again() {
    let fixture = Fixture::new();
    let (kafka, never) = (kafka(&fixture).await, CancellationToken::new());
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(csv(0..100).as_bytes()).expect("written");
    let import = import(&kafka, Input::Stream(Box::new(reader)), &never);
    let delete = async {
        tokio::task::block_in_place(|| {
            fixture.wait("the first rows", || (fixture.events().len() == 100).then_some(()));
            delete_topic(&fixture, &fixture.events);
            for number in 100..200 {
                writeln!(writer, "{}", row(number)).expect("written");
            }
            drop(writer);
        });
    };
    let (report, ()) = tokio::join!(import, delete);
    let receipt = report.expect("a report").receipt;
    assert_eq!((receipt.rows, receipt.accepted, receipt.error), (200, 200, None));
    // the first rows went with the topic
    assert_eq!(fixture.numbers(), (100..200).collect::<Vec<_>>());
}

#[test]
fn a_topic_that_is_deleted_while_the_importer_runs_is_created_again() {
    let fixture = Fixture::started();
    fixture.drop_in("a.csv", csv(0..100));
    fixture.receipt("done", "a.csv");
    delete_topic(&fixture, &fixture.events);
    fixture.drop_in("b.csv", csv(100..200));
    assert_eq!(fixture.counts("done", "b.csv"), (100, 100, 0, None));
    assert_eq!(fixture.numbers(), (100..200).collect::<Vec<_>>());
}

/// Line, byte, column and reason.
type Refusal = (u64, u64, Option<&'static str>, String);

/// The rows that would be refused, and the report.
fn check(input: Input) -> (Vec<Refusal>, ImportReport) {
    let mut refused = Vec::new();
    let report = check_file(input, &CancellationToken::new(), |RefusedRow { line, byte, column, reason }| {
        refused.push((line, byte, column, reason.to_owned()));
    });
    (refused, report.expect("a report"))
}

#[test]
fn a_file_is_checked_without_kafka() {
    let directory = tempfile::tempdir().expect("a directory");
    let zero = row(1).replace(",1,1,2", ",1,1,0");
    let content = format!("{HEADER}\n{}\n\nbad\n{}\n{}\n", row(0), "x".repeat(100_000), zero);
    let path = |name: &str| directory.path().join(name);
    fs::write(path("a.csv"), &content).expect("written");
    fs::write(path("a.csv.gz"), gzip(&content)).expect("written");
    let begin = (HEADER.len() + 1 + row(0).len() + 2) as u64;
    let expected = [
        (4, begin, None, "the line has 1 fields, the header has 6".to_owned()),
        (5, begin + 4, None, "the line is longer than 65536 bytes, these are its first 1000".into()),
        (6, begin + 4 + 100_001, Some("value"), "value: \"0\" is not a whole number from 1 to 2147483647".into()),
    ];
    let inputs =
        [Input::File(path("a.csv")), Input::File(path("a.csv.gz")), stream(content.clone()), stream(gzip(&content))];
    for input in inputs {
        let (refused, ImportReport { receipt, stopped_at }) = check(input);
        assert_eq!(refused, expected);
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused, receipt.error), (4, 1, 3, None));
        assert_eq!((receipt.event_type.as_deref(), stopped_at), (Some("stock"), None));
    }
    let error = |content: &[u8]| check(stream(content)).1.receipt.error.unwrap_or_default();
    assert_eq!(error(b""), "the file is empty");
    assert_eq!(error(b"\n\n"), "the file has no header line, only blank ones");
    assert!(error(b"a;b\n").contains("is not a header"));
    let packed = gzip(csv(0..5_000));
    assert!(error(&packed[..packed.len() / 2]).starts_with("the gzip file is truncated after "));
    assert!(check_file(Input::File(Path::new("absent").into()), &CancellationToken::new(), |_| {}).is_err());
}
