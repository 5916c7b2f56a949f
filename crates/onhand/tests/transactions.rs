//! The commands on a topic that transactional producers write to. The broker ends each transaction
//! with a marker, which has an offset of its own and comes to no reader, as records of an aborted
//! transaction do not.

mod system;

use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use runtime::{health::Health, kafka};
use system::{System, until};
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(60);

struct Transactions<'a> {
    system: &'a System,
    producer: BaseProducer,
}

impl Transactions<'_> {
    fn new(system: &System) -> Transactions<'_> {
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let (health, shutdown, topics) = (Health::default(), CancellationToken::new(), system.kafka.all_topics());
        tokio.block_on(kafka::ensure_topics(&system.kafka, &topics, &health, &shutdown)).expect("topics");
        let mut config = kafka::producer(&system.kafka, "test");
        let producer: BaseProducer = config.set("transactional.id", &system.topic).create().expect("a producer");
        producer.init_transactions(TIMEOUT).expect("transactions");
        Transactions { system, producer }
    }

    /// Sends the events with these ids in a transaction that is still open.
    fn begin(&self, ids: &[u32]) {
        self.producer.begin_transaction().expect("begun");
        for id in ids {
            let payload = format!(
                r#"{{"transaction_id":"00000000-0000-0000-0000-{id:012}","event_type":"incoming","date":"2019-04-14T03:47:13Z","store_number":"4","item_number":"3","value":"1"}}"#
            );
            self.producer.send(BaseRecord::to(&self.system.topic).key("4-3").payload(&payload)).expect("queued");
        }
        self.producer.flush(TIMEOUT).expect("sent");
    }

    fn commit(&self, ids: &[u32]) {
        self.begin(ids);
        self.producer.commit_transaction(TIMEOUT).expect("committed");
    }

    fn abort(&self, ids: &[u32]) {
        self.begin(ids);
        self.producer.abort_transaction(TIMEOUT).expect("aborted");
    }
}

/// What `onhand offsets` prints of the partition: next offset, end and lag.
fn offsets(system: &System) -> [i64; 3] {
    let (code, printed, said) = system.run(&["offsets"]);
    assert_eq!(code, Some(0), "{printed}{said}");
    let line = printed.lines().nth(1).expect("a partition").split_whitespace().skip(3);
    let numbers: Vec<_> = line.map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("three numbers")
}

/// Offsets of the records that `onhand tail` shows.
fn tail(system: &System, from: &str) -> Vec<u64> {
    let (code, lines, said) = system.run(&["tail", &system.topic, "--from", from, "--no-follow", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let records = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    records.map(|record| record["offset"].as_u64().expect("an offset")).collect()
}

/// Moves stock's position among offsets that have no record: where it stands there is its own affair.
fn stands_at(system: &System, next: i64) {
    system.tamper(match next {
        10 => "UPDATE consumer_offsets SET next_offset = 10",
        11 => "UPDATE consumer_offsets SET next_offset = 11",
        13 => "UPDATE consumer_offsets SET next_offset = 13",
        14 => "UPDATE consumer_offsets SET next_offset = 14",
        other => panic!("{other}?"),
    });
}

/// What `onhand verify` prints, which must be content.
fn verify(system: &System) -> String {
    let (code, printed, said) = system.run(&["verify"]);
    assert_eq!(code, Some(0), "{printed}{said}");
    printed
}

#[test]
fn markers_of_transactions_are_neither_waited_for_nor_counted_as_records() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "1")]);
    let transactions = Transactions::new(&system);
    // nothing but an aborted record and its marker
    transactions.abort(&[90]);
    assert_eq!((tail(&system, "beginning"), tail(&system, "end")), (vec![], vec![]));

    // records 2, 3 and 4, marker 5; aborted 6 and 7, marker 8; record 9, marker 10; aborted 11, marker 12
    transactions.commit(&[1, 2, 3]);
    transactions.abort(&[91, 92]);
    transactions.commit(&[4]);
    transactions.abort(&[93]);
    assert_eq!((tail(&system, "beginning"), tail(&system, "end")), (vec![2, 3, 4, 9], vec![]));

    let stock = system.start("stock");
    until("all are applied", || (system.count("transactions") == 4).then_some(()));
    stock.stop();
    // before, between and after what has no record: wherever stock stands, it has read everything
    for next in [10, 11, 13] {
        stands_at(&system, next);
        assert_eq!(offsets(&system), [next, 13, 0]);
        let printed = verify(&system);
        assert!(printed.contains(" 4 records of topic") && !printed.contains("not applied yet"), "{printed}");
    }

    // aborted 13, marker 14; records 15 and 16, marker 17; aborted 18, marker 19
    transactions.abort(&[94]);
    transactions.commit(&[5, 6]);
    transactions.abort(&[95]);
    assert_eq!(tail(&system, "beginning"), [2, 3, 4, 9, 15, 16]);
    // while a transaction is open, its records are not there yet, for anyone
    for open in [false, true] {
        if open {
            transactions.begin(&[7]);
        }
        for next in [10, 14] {
            stands_at(&system, next);
            assert_eq!(offsets(&system), [next, 20, 2]);
            let printed = verify(&system);
            assert!(printed.contains(" 2 records are not applied yet, and not compared"), "{printed}");
        }
        assert_eq!((tail(&system, "beginning"), tail(&system, "end")), (vec![2, 3, 4, 9, 15, 16], vec![]));
    }
    transactions.producer.abort_transaction(TIMEOUT).expect("aborted");
}
