//! A Kafka that takes most things, but not all: one partition is away, one record is not to its liking.

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use crate::house::{HEADER, House, csv, gzip, read_topic, row};

/// Creates a topic before the importer does, with a setting.
fn create(house: &House, topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &house.broker).create().expect("a client");
    let topic = NewTopic::new(topic, 3, TopicReplication::Fixed(1)).set(name, value);
    let created = futures::executor::block_on(admin.create_topics([&topic], &AdminOptions::new())).expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

#[test]
fn a_record_that_kafka_refuses_blocks_its_file_alone_and_is_not_sent_for_ever() {
    let mut house = House::new();
    // a compacted topic takes no record without a key, such as a refusal
    create(&house, &house.errors, "cleanup.policy", "compact");
    house.start();
    house.drop_in("a.csv", csv(0..500) + "bad\n" + &csv(500..1_000)[HEADER.len() + 1..]);
    let error = house.receipt("rejected", "a.csv").error.expect("an error");
    assert!(error.starts_with("Kafka refuses what becomes of its line 502: InvalidRecord"), "{error}");
    house.wait_for_log("files: 1 files cannot be imported: \"a.csv\": Kafka refuses what becomes of its line 502");
    let begun = Instant::now();
    let mut number = 1_000;
    // its turn comes again meanwhile, after 0.5, 1, 2 and 4 s
    while begun.elapsed() < Duration::from_secs(6) {
        let name = format!("{number}.csv");
        house.drop_in(&name, csv([number]));
        house.receipt("done", &name);
        number += 1;
    }
    let numbers = house.numbers();
    let sent = numbers.iter().filter(|number| **number < 500).count();
    // once, and once more one by one
    assert!((500..1_100).contains(&sent), "{sent} records of the 500 rows before it");
    let sent = numbers.iter().filter(|number| (500..1_000).contains(*number)).count();
    assert!(sent <= 500, "{sent} records of the 500 rows after it");
    let others = numbers.iter().filter(|number| **number >= 1_000).count();
    assert!(others < 2 * (number - 1_000), "{others} records of {} rows of other files", number - 1_000);
    assert!(house.input("a.csv").exists());
}

#[test]
fn many_files_with_a_record_that_kafka_refuses_hold_up_no_other() {
    let mut house = House::new();
    create(&house, &house.errors, "cleanup.policy", "compact");
    house.start();
    let poison = 300;
    for number in 0..poison {
        house.drop_in(format!("poison{number}.csv"), csv([number]) + "bad\n");
    }
    let count = |text: &str| house.log().matches(text).count();
    house.wait_long("all to be reported", || {
        (count("can't be imported now and stays there: Kafka refuses") == poison).then_some(())
    });
    let renewed = count("Kafka did not take everything");
    let begun = Instant::now();
    let mut number = 1_000;
    while begun.elapsed() < Duration::from_secs(10) {
        let name = format!("{number}.csv");
        house.drop_in(&name, csv([number]));
        house.receipt("done", &name);
        number += 1;
    }
    let renewed = count("Kafka did not take everything") - renewed;
    // most tries fail twice, at most one try a second
    assert!((1..=22).contains(&renewed), "{renewed} new producers within 10 s");
    assert!(number > 1_010, "only {} files within 10 s", number - 1_000);
}

#[test]
fn a_row_beyond_the_topics_limit_is_refused_alone_and_batches_keep_to_the_limit() {
    let mut house = House::new();
    create(&house, &house.events, "max.message.bytes", "1000");
    house.start();
    let large = row(3).replace(",3,3,", &format!(",3,{}3,", "0".repeat(1_000)));
    assert!(large.len() > 1_000);
    house.drop_in("a.csv", csv(0..3) + &large + "\n" + &csv(4..2_000)[HEADER.len() + 1..]);
    assert_eq!(house.counts("done", "a.csv"), (2_000, 1_999, 1, None));
    let reason = house.errors()[0].json()["error"].as_str().map(str::to_owned).expect("a reason");
    assert_eq!(reason, format!("the row is too large for the topic {} (its max.message.bytes)", house.events));
    assert_eq!(house.numbers(), (0..3).chain(4..2_000).collect::<Vec<_>>(), "no row twice");
    assert!(!house.log().contains("Kafka did not take everything"), "nothing had to be tried out");
}

/// Two brokers; those with a leader that is down take nothing.
fn two_brokers() -> (MockCluster<'static, DefaultProducerContext>, House) {
    let cluster = MockCluster::new(2).expect("a cluster");
    let house = House::at(&cluster.bootstrap_servers());
    for (topic, partitions) in [(&house.events, 3), (&house.errors, 1)] {
        cluster.create_topic(topic, partitions, 1).expect("a topic");
        for partition in 0..partitions {
            cluster.partition_leader(topic, partition, Some(1)).expect("a leader");
        }
    }
    (cluster, house)
}

/// A partition of the events topic, a card whose rows are all in it, and one whose rows are not.
fn partition_and_cards(house: &House) -> (i32, usize, usize) {
    house.drop_in("before.csv", csv(0..100));
    house.receipt("done", "before.csv");
    let events = read_topic(&house.broker, &house.events);
    let partition = events[0].partition;
    let card = |is_in: bool| {
        let record = events.iter().find(|record| (record.partition == partition) == is_in).expect("a record");
        record.number() % 35
    };
    (partition, card(true), card(false))
}

#[test]
fn a_partition_that_is_away_holds_up_only_files_with_rows_for_it() {
    let (cluster, mut house) = two_brokers();
    house.start();
    let (away, lost, found) = partition_and_cards(&house);
    cluster.partition_leader(&house.events, away, Some(2)).expect("a leader");
    cluster.broker_down(2).expect("it is down");
    // far more than the client takes, all of it for the partition that is away, and some for all
    house.drop_in("stuck.csv", csv((1..100_000).map(|number| lost + 35 * number)));
    house.drop_in("mixed.csv", csv(1_000..60_000));
    house.wait_for_log(&format!("partitions: {} partition {away}", house.events));
    for number in 0..50 {
        let name = format!("{number}.csv");
        house.drop_in(&name, csv([found + 35 * (200_000 + number)]));
        assert_eq!(house.counts("done", &name), (1, 1, 0, None));
    }
    assert!(house.input("stuck.csv").exists() && house.input("mixed.csv").exists());
    cluster.broker_up(2).expect("it is up");
    house.wait_for_log("partitions is back");
    let receipt = house.wait_long("stuck.csv", || {
        serde_json::from_str::<importer::Receipt>(&house.read("done/stuck.csv.receipt.json")).ok()
    });
    assert_eq!((receipt.accepted, receipt.refused), (99_999, 0));
    assert_eq!(house.counts("done", "mixed.csv"), (59_000, 59_000, 0, None));
}

#[test]
fn without_the_right_to_ask_for_the_limit_a_row_beyond_it_is_found_by_sending_it_alone() {
    let cluster = MockCluster::new(1).expect("a cluster");
    let mut house = House::at(&cluster.bootstrap_servers());
    for topic in [&house.events, &house.errors] {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    // a batch of several rows, then one of them alone
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error; 2]);
    house.start();
    house.drop_in("a.csv", csv([]) + "\n\n" + &csv(0..3)[HEADER.len() + 1..]);
    assert_eq!(house.counts("done", "a.csv"), (3, 2, 1, None));
    let reason = house.errors()[0].json()["error"].as_str().map(str::to_owned).expect("a reason");
    assert_eq!(reason, format!("the row is too large for the topic {} (its max.message.bytes)", house.events));
    assert_eq!(house.text("rejected/a.csv").lines().count(), 2);
}

#[test]
fn many_files_for_a_partition_that_is_away_hold_up_no_other() {
    let (cluster, mut house) = two_brokers();
    house.start();
    let (away, lost, found) = partition_and_cards(&house);
    cluster.partition_leader(&house.events, away, Some(2)).expect("a leader");
    cluster.partition_leader(&house.errors, 0, Some(2)).expect("a leader");
    cluster.broker_down(2).expect("it is down");
    // more than the client takes: packed files, files of many rows, and refusals of many bytes
    for file in 0..100 {
        let rows = |count: usize| csv((0..count).map(|number| lost + 35 * (file * 10_000 + number + 10)));
        house.drop_in(format!("packed{file}.csv.gz"), gzip(rows(200)));
        house.drop_in(format!("large{file}.csv"), rows(2_000));
    }
    for file in 0..400 {
        house.drop_in(format!("garbage{file}.csv"), csv([]) + &"x".repeat(60_000) + "\n");
    }
    house.wait_for_log("partitions: ");
    house.wait_long("all to be begun", || (house.log().matches("importing \"").count() == 601).then_some(()));
    for number in 0..20 {
        let name = format!("{number}.csv");
        house.drop_in(&name, csv([found + 35 * (200_000 + number)]));
        assert_eq!(house.counts("done", &name), (1, 1, 0, None));
    }
    house.drop_in("good.csv.gz", gzip(csv([found + 35 * 300_000])));
    assert_eq!(house.counts("done", "good.csv.gz"), (1, 1, 0, None));
    cluster.broker_up(2).expect("it is up");
    house.wait_long("all files", || (house.names("done").len() == 2 * (100 + 100 + 400 + 22)).then_some(()));
}
