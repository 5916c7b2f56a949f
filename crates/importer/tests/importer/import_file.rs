//! One given file, as `onhand import` imports it.

use importer::import_file;
use runtime::{Environment, KafkaSettings, health::Health, kafka::ensure_topics};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, csv, gzip};

#[tokio::test(flavor = "multi_thread")]
async fn a_given_file_is_imported_and_left_where_it_is() {
    let fixture = Fixture::new();
    let mut env = Environment::of([
        ("KAFKA_BROKER_URL".into(), fixture.broker.clone()),
        ("KAFKA_EVENTS_TOPIC".into(), fixture.events.clone()),
        ("KAFKA_ERRORS_TOPIC".into(), fixture.errors.clone()),
    ]);
    let kafka = KafkaSettings::read(&mut env);
    ensure_topics(&kafka, &kafka.all_topics(), &Health::default(), &CancellationToken::new()).await.expect("topics");
    for name in ["a.csv", "a.csv.gz"] {
        let content = csv(0..1_000) + "bad";
        let bytes = if name.ends_with("gz") { gzip(content) } else { content.into_bytes() };
        let path = fixture.path(name);
        std::fs::write(&path, &bytes).expect("a file");
        let mut last = None;
        let receipt = import_file(&kafka, &path, |pace| last = Some(pace)).expect("a receipt");
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused, receipt.error), (1_001, 1_000, 1, None));
        assert_eq!(receipt.bytes, bytes.len() as u64);
        let last = last.expect("progress was reported");
        assert_eq!(
            (last.bytes_done, last.bytes_total, last.accepted, last.refused, last.in_flight),
            (receipt.bytes, receipt.bytes, 1_000, 1, 0)
        );
        assert!(path.exists());
    }
    assert_eq!(fixture.events().len(), 2_000);
    assert!(import_file(&kafka, &fixture.path("absent.csv"), |_| {}).is_err());
    std::fs::write(fixture.path("other.csv"), "a,b\n").expect("a file");
    let receipt = import_file(&kafka, &fixture.path("other.csv"), |_| {}).expect("a receipt");
    assert!(receipt.error.is_some_and(|error| error.contains("not a header")));
}
