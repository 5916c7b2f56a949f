//! A broker that is unavailable, frozen, or returns errors.

use std::{
    fs::File,
    io::Write,
    time::{Duration, Instant},
};

use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use crate::fixture::{Fixture, csv, gzip, read_topic, row};

/// A cluster in this process whose answers can be chosen.
fn mock() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Fixture) {
    let cluster = MockCluster::new(1).expect("a cluster");
    let fixture = Fixture::at(&cluster.bootstrap_servers());
    for topic in [&fixture.events, &fixture.errors] {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    (cluster, fixture)
}

#[test]
fn while_the_broker_is_frozen_the_importer_waits_reports_it_and_continues() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut fixture = Fixture::at(&kafka.broker());
    fixture.start();
    fixture.drop_in("a.csv", csv(0..100));
    fixture.receipt("done", "a.csv");
    kafka.pause();
    fixture.drop_in("b.csv", csv(100..200));
    fixture.wait_for_log("waiting for Kafka at");
    assert!(fixture.input("b.csv").exists(), "no file is finished with a row unacknowledged");
    kafka.resume();
    assert_eq!(fixture.counts("done", "b.csv"), (100, 100, 0, None));
    fixture.wait_for_log("kafka is back");
    assert_eq!(fixture.numbers(), (0..200).collect::<Vec<_>>());

    kafka.pause();
    fixture.drop_in("c.csv", csv(200..300));
    fixture
        .wait("it to be reported again", || (fixture.log().matches("waiting for Kafka at").count() == 2).then_some(()));
    let took = fixture.stop();
    assert!(took < Duration::from_secs(10), "it stopped after {took:?}, though the broker is frozen");
    kafka.resume();
    fixture.start();
    assert_eq!(fixture.counts("done", "c.csv"), (100, 100, 0, None));
    let mut numbers = fixture.numbers();
    numbers.dedup();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

#[test]
fn a_packed_file_that_grows_before_its_last_acknowledgement_is_read_on_where_it_ended() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut fixture = Fixture::at(&kafka.broker());
    fixture.start();
    fixture.drop_in("a.csv", csv([0]));
    fixture.receipt("done", "a.csv");
    kafka.pause();
    fixture.drop_in("b.csv.gz", gzip(csv(1..100)));
    fixture.wait_for_log("waiting for Kafka at");
    let more: String = (100..200).map(|number| row(number) + "\n").collect();
    let mut file = File::options().append(true).open(fixture.input("b.csv.gz")).expect("the file");
    file.write_all(&gzip(more)).expect("written");
    drop(file);
    kafka.resume();
    assert_eq!(fixture.counts("done", "b.csv.gz"), (199, 199, 0, None));
    assert_eq!(fixture.numbers(), (0..200).collect::<Vec<_>>(), "no row twice");
    assert_eq!(fixture.errors(), []);
}

#[test]
fn a_second_signal_ends_the_importer_at_once() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut fixture = Fixture::at(&kafka.broker());
    for (number, (signal, status)) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)].into_iter().enumerate() {
        fixture.start();
        fixture.drop_in(format!("before{number}.csv"), csv([number]));
        fixture.receipt("done", &format!("before{number}.csv"));
        kafka.pause();
        // with rows in flight, it would wait for seconds after a single signal
        fixture.drop_in(format!("held{number}.csv"), csv([10 + number]));
        let said = |fixture: &Fixture, text| fixture.log().matches::<&str>(text).count() > number;
        fixture.wait("it to wait", || said(&fixture, "waiting for Kafka at").then_some(()));
        let mut importer = fixture.importer.take().expect("an importer");
        // SAFETY: signals to our own child
        let send = |id: u32| unsafe { libc::kill(id as i32, signal) };
        send(importer.id());
        fixture.wait("the first signal", || said(&fixture, "a second signal exits at once").then_some(()));
        let begun = Instant::now();
        send(importer.id());
        let ended = importer.wait().expect("its end");
        assert_eq!(ended.code(), Some(status), "{ended}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        kafka.resume();
    }
    fixture.start();
    for name in ["held0.csv", "held1.csv"] {
        assert_eq!(fixture.counts("done", name), (1, 1, 0, None));
    }
}

#[test]
fn without_a_broker_the_importer_waits_and_can_be_stopped() {
    let mut fixture = Fixture::at("127.0.0.1:1");
    fixture.start();
    fixture.wait_for_log("waiting for 127.0.0.1:1");
    let took = fixture.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_stop_waits_for_all_acknowledgements() {
    let mut fixture = Fixture::started();
    fixture.drop_in("a.csv", csv(0..100_000));
    fixture.wait_for_log("importing file=\"a.csv\"");
    fixture.stop();
    fixture.start();
    assert_eq!(fixture.counts("done", "a.csv"), (100_000, 100_000, 0, None));
    assert_eq!(fixture.numbers(), (0..100_000).collect::<Vec<_>>(), "no row twice");
}

#[test]
fn errors_of_the_broker_lose_no_row() {
    for (error, times) in [
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, 2),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 2),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, 1),
    ] {
        let (cluster, mut fixture) = mock();
        cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; times]);
        fixture.start();
        fixture.drop_in("a.csv", csv(0..500) + "bad\n");
        assert_eq!(fixture.counts("done", "a.csv"), (501, 500, 1, None), "{error:?}");
        let mut numbers: Vec<_> =
            read_topic(&fixture.broker, &fixture.events).iter().map(|record| record.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>(), "{error:?}");
    }
}

#[test]
fn while_the_broker_is_frozen_the_importer_stops_in_time_whatever_it_does() {
    let root = tempfile::tempdir().expect("a directory");
    let kafka = sandbox::Kafka::start(root.path()).expect("a Kafka of its own");
    let mut fixture = Fixture::at(&kafka.broker());
    fixture.start();
    fixture.drop_in("first.csv", csv([0]));
    fixture.receipt("done", "first.csv");
    let mut times = Vec::new();
    kafka.pause();
    // idle
    times.push(("idle", fixture.stop()));
    // waiting for its topics
    fixture.start();
    fixture.wait_for_log("kafka: waiting for ");
    times.push(("starting", fixture.stop()));
    kafka.resume();
    // with as much in flight as possible
    fixture.start();
    fixture.drop_in("second.csv", csv([1]));
    fixture.receipt("done", "second.csv");
    kafka.pause();
    fixture.drop_in("large.csv", csv(0..100_000));
    fixture.wait_for_log("rows in flight");
    times.push(("sending", fixture.stop()));
    println!("{times:?}");
    for (what, time) in &times {
        assert!(*time < Duration::from_secs(8), "{what}: {times:?}");
    }
    kafka.resume();
}
