//! A broker that is away, frozen, or says no.

use std::{
    fs::File,
    io::Write,
    time::{Duration, Instant},
};

use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use crate::house::{House, csv, gzip, read_topic, row};

/// A cluster in this process whose answers can be chosen; topics are created by asking for them.
fn mock() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, House) {
    let cluster = MockCluster::new(1).expect("a cluster");
    let house = House::at(&cluster.bootstrap_servers());
    for topic in [&house.events, &house.errors] {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    (cluster, house)
}

#[test]
fn while_the_broker_is_frozen_it_waits_says_so_and_goes_on() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut house = House::at(&kafka.broker());
    house.start();
    house.drop_in("a.csv", csv(0..100));
    house.receipt("done", "a.csv");
    kafka.pause();
    house.drop_in("b.csv", csv(100..200));
    house.wait_for_log("waiting for Kafka at");
    assert!(house.input("b.csv").exists(), "no file is finished with a row unacknowledged");
    kafka.resume();
    assert_eq!(house.counts("done", "b.csv"), (100, 100, 0, None));
    house.wait_for_log("kafka is back");
    assert_eq!(house.numbers(), (0..200).collect::<Vec<_>>());

    kafka.pause();
    house.drop_in("c.csv", csv(200..300));
    house.wait("it to be told again", || (house.log().matches("waiting for Kafka at").count() == 2).then_some(()));
    let took = house.stop();
    assert!(took < Duration::from_secs(10), "it stopped after {took:?}, though the broker is frozen");
    kafka.resume();
    house.start();
    assert_eq!(house.counts("done", "c.csv"), (100, 100, 0, None));
    let mut numbers = house.numbers();
    numbers.dedup();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

#[test]
fn a_packed_file_that_grows_before_its_last_acknowledgement_is_read_on_where_it_ended() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut house = House::at(&kafka.broker());
    house.start();
    house.drop_in("a.csv", csv([0]));
    house.receipt("done", "a.csv");
    kafka.pause();
    house.drop_in("b.csv.gz", gzip(csv(1..100)));
    house.wait_for_log("waiting for Kafka at");
    let more: String = (100..200).map(|number| row(number) + "\n").collect();
    let mut file = File::options().append(true).open(house.input("b.csv.gz")).expect("the file");
    file.write_all(&gzip(more)).expect("written");
    drop(file);
    kafka.resume();
    assert_eq!(house.counts("done", "b.csv.gz"), (199, 199, 0, None));
    assert_eq!(house.numbers(), (0..200).collect::<Vec<_>>(), "no row twice");
    assert_eq!(house.errors(), []);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut house = House::at(&kafka.broker());
    for (number, (signal, status)) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)].into_iter().enumerate() {
        house.start();
        house.drop_in(format!("before{number}.csv"), csv([number]));
        house.receipt("done", &format!("before{number}.csv"));
        kafka.pause();
        // with rows in flight, one signal alone would have it wait for 8 s
        house.drop_in(format!("held{number}.csv"), csv([10 + number]));
        let said = |house: &House, text| house.log().matches::<&str>(text).count() > number;
        house.wait("it to wait", || said(&house, "waiting for Kafka at").then_some(()));
        let mut importer = house.importer.take().expect("an importer");
        // SAFETY: signals to our own child
        let send = |id: u32| unsafe { libc::kill(id as i32, signal) };
        send(importer.id());
        house.wait("the first signal", || said(&house, "a second signal ends it at once").then_some(()));
        let begun = Instant::now();
        send(importer.id());
        let ended = importer.wait().expect("its end");
        assert_eq!(ended.code(), Some(status), "{ended}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        kafka.resume();
    }
    house.start();
    for name in ["held0.csv", "held1.csv"] {
        assert_eq!(house.counts("done", name), (1, 1, 0, None));
    }
}

#[test]
fn without_a_broker_it_waits_and_stops_when_it_is_told_to() {
    let mut house = House::at("127.0.0.1:1");
    house.start();
    house.wait_for_log("waiting for 127.0.0.1:1");
    let took = house.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn told_to_stop_it_leaves_nothing_unacknowledged() {
    let mut house = House::started();
    house.drop_in("a.csv", csv(0..100_000));
    house.wait_for_log("importing \"a.csv\"");
    house.stop();
    house.start();
    assert_eq!(house.counts("done", "a.csv"), (100_000, 100_000, 0, None));
    assert_eq!(house.numbers(), (0..100_000).collect::<Vec<_>>(), "no row twice");
}

#[test]
fn errors_of_the_broker_lose_no_row() {
    for (error, times) in [
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, 2),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 2),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, 1),
    ] {
        let (cluster, mut house) = mock();
        cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; times]);
        house.start();
        house.drop_in("a.csv", csv(0..500) + "bad\n");
        assert_eq!(house.counts("done", "a.csv"), (501, 500, 1, None), "{error:?}");
        let mut numbers: Vec<_> =
            read_topic(&house.broker, &house.events).iter().map(|record| record.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>(), "{error:?}");
    }
}

#[test]
fn while_the_broker_is_frozen_it_stops_within_its_time_whatever_it_does() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut house = House::at(&kafka.broker());
    house.start();
    house.drop_in("first.csv", csv([0]));
    house.receipt("done", "first.csv");
    let mut times = Vec::new();
    kafka.pause();
    // with nothing to do
    times.push(("idle", house.stop()));
    // waiting for its topics
    house.start();
    house.wait_for_log("kafka: waiting for ");
    times.push(("starting", house.stop()));
    kafka.resume();
    // with as much on its way as there can be
    house.start();
    house.drop_in("second.csv", csv([1]));
    house.receipt("done", "second.csv");
    kafka.pause();
    house.drop_in("large.csv", csv(0..100_000));
    house.wait_for_log("rows in flight");
    times.push(("sending", house.stop()));
    println!("{times:?}");
    for (what, time) in &times {
        assert!(*time < Duration::from_secs(8), "{what}: {times:?}");
    }
    kafka.resume();
}
