//! A Kafka that refuses some records, or has an offline partition.

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use crate::fixture::{Fixture, HEADER, csv, gzip, read_topic, row};

/// Creates a topic before the importer does, with a setting.
fn create(fixture: &Fixture, topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &fixture.broker).create().expect("a client");
    let topic = NewTopic::new(topic, 3, TopicReplication::Fixed(1)).set(name, value);
    let created = futures::executor::block_on(admin.create_topics([&topic], &AdminOptions::new())).expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

#[test]
fn a_record_that_kafka_refuses_blocks_only_its_file_and_is_not_sent_for_ever() {
    let mut fixture = Fixture::new();
    // a compacted topic accepts no record without a key, such as a refusal
    create(&fixture, &fixture.errors, "cleanup.policy", "compact");
    fixture.start();
    fixture.drop_in("a.csv", csv(0..500) + "bad\n" + &csv(500..1_000)[HEADER.len() + 1..]);
    let error = fixture.receipt("rejected", "a.csv").error.expect("an error");
    assert!(error.starts_with("Kafka refuses the record of line 502: InvalidRecord"), "{error}");
    fixture.wait_for_log("files: 1 files cannot be imported: \"a.csv\": Kafka refuses the record of line 502");
    let begun = Instant::now();
    let mut number = 1_000;
    // it is retried meanwhile, after 0.5, 1, 2 and 4 s
    while begun.elapsed() < Duration::from_secs(6) {
        let name = format!("{number}.csv");
        fixture.drop_in(&name, csv([number]));
        fixture.receipt("done", &name);
        number += 1;
    }
    let numbers = fixture.numbers();
    let sent = numbers.iter().filter(|number| **number < 500).count();
    // once, and once more one at a time
    assert!((500..1_100).contains(&sent), "{sent} records of the 500 rows before it");
    let sent = numbers.iter().filter(|number| (500..1_000).contains(*number)).count();
    assert!(sent <= 500, "{sent} records of the 500 rows after it");
    let others = numbers.iter().filter(|number| **number >= 1_000).count();
    assert!(others < 2 * (number - 1_000), "{others} records of {} rows of other files", number - 1_000);
    assert!(fixture.input("a.csv").exists());
}

#[test]
fn many_files_with_a_record_that_kafka_refuses_delay_no_other() {
    let mut fixture = Fixture::new();
    create(&fixture, &fixture.errors, "cleanup.policy", "compact");
    fixture.start();
    let poison = 300;
    for number in 0..poison {
        fixture.drop_in(format!("poison{number}.csv"), csv([number]) + "bad\n");
    }
    let count = |text: &str| fixture.log().matches(text).count();
    fixture.wait_long("all to be reported", || {
        (count(" reason=\"Kafka refuses the record of line") == poison).then_some(())
    });
    let renewed = count("Kafka did not accept everything");
    let begun = Instant::now();
    let mut number = 1_000;
    while begun.elapsed() < Duration::from_secs(10) {
        let name = format!("{number}.csv");
        fixture.drop_in(&name, csv([number]));
        fixture.receipt("done", &name);
        number += 1;
    }
    let renewed = count("Kafka did not accept everything") - renewed;
    // most retries fail twice, at most one retry a second
    assert!((1..=22).contains(&renewed), "{renewed} new producers within 10 s");
    assert!(number > 1_010, "only {} files within 10 s", number - 1_000);
}

#[test]
fn a_row_larger_than_the_topics_limit_is_refused_alone_and_batches_keep_to_the_limit() {
    let mut fixture = Fixture::new();
    create(&fixture, &fixture.events, "max.message.bytes", "1000");
    fixture.start();
    let large = row(3).replace(",3,3,", &format!(",3,{}3,", "0".repeat(1_000)));
    assert!(large.len() > 1_000);
    fixture.drop_in("a.csv", csv(0..3) + &large + "\n" + &csv(4..2_000)[HEADER.len() + 1..]);
    assert_eq!(fixture.counts("done", "a.csv"), (2_000, 1_999, 1, None));
    let reason = fixture.errors()[0].json()["error"].as_str().map(str::to_owned).expect("a reason");
    assert_eq!(reason, format!("the row is too large for the topic {} (its max.message.bytes)", fixture.events));
    assert_eq!(fixture.numbers(), (0..3).chain(4..2_000).collect::<Vec<_>>(), "no row twice");
    assert!(!fixture.log().contains("Kafka did not accept everything"), "nothing had to be tried out");
}

/// Two brokers; partitions whose leader is down accept nothing.
fn two_brokers() -> (MockCluster<'static, DefaultProducerContext>, Fixture) {
    let cluster = MockCluster::new(2).expect("a cluster");
    let fixture = Fixture::at(&cluster.bootstrap_servers());
    for (topic, partitions) in [(&fixture.events, 3), (&fixture.errors, 1)] {
        cluster.create_topic(topic, partitions, 1).expect("a topic");
        for partition in 0..partitions {
            cluster.partition_leader(topic, partition, Some(1)).expect("a leader");
        }
    }
    (cluster, fixture)
}

/// A partition of the events topic, a card whose rows are all in it, and one whose rows are not.
fn partition_and_cards(fixture: &Fixture) -> (i32, usize, usize) {
    fixture.drop_in("before.csv", csv(0..100));
    fixture.receipt("done", "before.csv");
    let events = read_topic(&fixture.broker, &fixture.events);
    let partition = events[0].partition;
    let card = |is_in: bool| {
        let record = events.iter().find(|record| (record.partition == partition) == is_in).expect("a record");
        record.number() % 35
    };
    (partition, card(true), card(false))
}

#[test]
fn an_offline_partition_delays_only_files_with_rows_for_it() {
    let (cluster, mut fixture) = two_brokers();
    fixture.start();
    let (away, lost, found) = partition_and_cards(&fixture);
    cluster.partition_leader(&fixture.events, away, Some(2)).expect("a leader");
    cluster.broker_down(2).expect("it is down");
    // far more than the client's queue holds, all of it for the offline partition, and some for all of them
    fixture.drop_in("stuck.csv", csv((1..100_000).map(|number| lost + 35 * number)));
    fixture.drop_in("mixed.csv", csv(1_000..60_000));
    fixture.wait_for_log(&format!("partitions: {} partition {away}", fixture.events));
    for number in 0..50 {
        let name = format!("{number}.csv");
        fixture.drop_in(&name, csv([found + 35 * (200_000 + number)]));
        assert_eq!(fixture.counts("done", &name), (1, 1, 0, None));
    }
    assert!(fixture.input("stuck.csv").exists() && fixture.input("mixed.csv").exists());
    cluster.broker_up(2).expect("it is up");
    fixture.wait_for_log("partitions is back");
    let receipt = fixture.wait_long("stuck.csv", || {
        serde_json::from_str::<importer::Receipt>(&fixture.read("done/stuck.csv.receipt.json")).ok()
    });
    assert_eq!((receipt.accepted, receipt.refused), (99_999, 0));
    assert_eq!(fixture.counts("done", "mixed.csv"), (59_000, 59_000, 0, None));
}

#[test]
fn a_row_larger_than_an_unknown_limit_is_found_by_sending_it_alone() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let mut fixture = Fixture::at(&cluster.bootstrap_servers());
    for topic in [&fixture.events, &fixture.errors] {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    // a batch of several rows, then one of them alone
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error; 2]);
    fixture.start();
    fixture.drop_in("a.csv", csv([]) + "\n\n" + &csv(0..3)[HEADER.len() + 1..]);
    assert_eq!(fixture.counts("done", "a.csv"), (3, 2, 1, None));
    let reason = fixture.errors()[0].json()["error"].as_str().map(str::to_owned).expect("a reason");
    assert_eq!(reason, format!("the row is too large for the topic {} (its max.message.bytes)", fixture.events));
    assert_eq!(fixture.text("rejected/a.csv").lines().count(), 2);
}

#[test]
fn many_files_for_an_offline_partition_delay_no_other() {
    let (cluster, mut fixture) = two_brokers();
    fixture.start();
    let (away, lost, found) = partition_and_cards(&fixture);
    cluster.partition_leader(&fixture.events, away, Some(2)).expect("a leader");
    cluster.partition_leader(&fixture.errors, 0, Some(2)).expect("a leader");
    cluster.broker_down(2).expect("it is down");
    // more than the client's queue holds: packed files, files of many rows, and refusals of many bytes
    for file in 0..100 {
        let rows = |count: usize| csv((0..count).map(|number| lost + 35 * (file * 10_000 + number + 10)));
        fixture.drop_in(format!("packed{file}.csv.gz"), gzip(rows(200)));
        fixture.drop_in(format!("large{file}.csv"), rows(2_000));
    }
    for file in 0..400 {
        fixture.drop_in(format!("garbage{file}.csv"), csv([]) + &"x".repeat(60_000) + "\n");
    }
    fixture.wait_for_log("partitions: ");
    fixture.wait_long("all to be started", || {
        (fixture.log().matches("INFO importing file=").count() == 601).then_some(())
    });
    for number in 0..20 {
        let name = format!("{number}.csv");
        fixture.drop_in(&name, csv([found + 35 * (200_000 + number)]));
        assert_eq!(fixture.counts("done", &name), (1, 1, 0, None));
    }
    fixture.drop_in("good.csv.gz", gzip(csv([found + 35 * 300_000])));
    assert_eq!(fixture.counts("done", "good.csv.gz"), (1, 1, 0, None));
    cluster.broker_up(2).expect("it is up");
    fixture.wait_long("all files", || (fixture.names("done").len() == 2 * (100 + 100 + 400 + 22)).then_some(()));
}
