//! Each server by itself: it answers, and keeps its data through crashes and restarts.

mod common;

use std::time::Duration;

use common::{answers, consume, create_topic, eventually, is_alive, produce, remove_elsewhere, root, sql};
use sandbox::{Kafka, Postgres};

#[test]
fn postgres_keeps_its_data_and_port_through_a_crash_and_a_new_start() {
    let (_parent, root) = root(false);
    let mut server = Postgres::start(&root).unwrap();
    let at = server.address();
    server.create_database("db").unwrap();
    server.create_database("db").unwrap();
    sql(&at, "db", "CREATE TABLE t (n int); INSERT INTO t VALUES (42)").unwrap();

    server.kill();
    assert_eq!(server.pid(), None);
    sql(&at, "db", "SELECT n FROM t").unwrap_err();
    server.restart().unwrap();
    assert_eq!(sql(&at, "db", "SELECT n FROM t").unwrap(), Some(42));

    drop(server);
    let again = Postgres::start(&root).unwrap();
    assert_eq!(again.address(), at);
    assert_eq!(sql(&at, "db", "SELECT n FROM t").unwrap(), Some(42));
}

#[test]
fn a_paused_postgres_answers_nothing_until_it_is_resumed_and_can_be_stopped() {
    let (_parent, root) = root(false);
    let mut server = Postgres::start(&root).unwrap();
    let at = server.address();
    server.pause();
    let (done, result) = std::sync::mpsc::channel();
    let query = std::thread::spawn({
        let at = at.clone();
        move || done.send(sql(&at, "postgres", "SELECT 7").unwrap())
    });
    result.recv_timeout(Duration::from_millis(500)).unwrap_err();
    server.resume();
    assert_eq!(result.recv().unwrap(), Some(7));
    query.join().unwrap().unwrap();
    server.pause();
    let pid = server.pid().unwrap();
    server.stop();
    assert!(!is_alive(pid));
}

#[test]
fn postgres_runs_below_a_directory_that_only_its_owner_may_enter() {
    let (_parent, root) = root(true);
    let server = Postgres::start(&root).unwrap();
    let at = server.address();
    sql(&at, "postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (42)").unwrap();
    drop(server);
    let again = Postgres::start(&root).unwrap();
    assert_eq!(sql(&at, "postgres", "SELECT n FROM t").unwrap(), Some(42));
    drop(again);
    remove_elsewhere(&root);
}

#[test]
fn data_kept_outside_of_a_removed_root_is_not_used_again() {
    let (_parent, root) = root(true);
    let server = Postgres::start(&root).unwrap();
    server.create_database("old").unwrap();
    drop(server);
    std::fs::remove_dir_all(&root).unwrap();
    let server = Postgres::start(&root).unwrap();
    // As root the data was outside and is not reused, else it was removed with the directory.
    sql(&server.address(), "old", "SELECT 1").unwrap_err();
    drop(server);
    remove_elsewhere(&root);
}

#[test]
fn kafka_keeps_its_data_and_port_through_a_crash_a_pause_and_a_new_start() {
    let (_parent, root) = root(true);
    let mut broker = Kafka::start(&root).unwrap();
    let at = broker.broker();
    create_topic(&at, "kept");
    produce(&at, "kept", "hello");

    broker.kill();
    assert_eq!(broker.pid(), None);
    broker.restart().unwrap();
    assert_eq!(consume(&at, "kept"), "hello");

    broker.pause();
    assert!(!answers(&at, Duration::from_millis(500)));
    broker.resume();
    assert!(answers(&at, Duration::from_secs(30)));
    broker.pause();
    let pid = broker.pid().unwrap();
    drop(broker);
    eventually("the broker has ended", || !is_alive(pid));
    let again = Kafka::start(&root).unwrap();
    assert_eq!(again.broker(), at);
    assert_eq!(consume(&at, "kept"), "hello");
}
