//! Processes: takeovers, panics, shutdown, and how long one event takes.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rdkafka::producer::BaseRecord;
use sandbox::Kafka;
use serde_json::json;
use time::OffsetDateTime;

use crate::house::House;

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_apply_ends_the_service_with_an_error() {
    let house = House::new(2).await;
    house.send(0, ["1", "panic", "3"]);
    let error = house.start().await.end().await.expect_err("it must end");
    assert!(format!("{error:#}").contains(&format!("applying {} partition 0 panicked", house.topic())), "{error:#}");
    assert_eq!((house.applied(0).await, house.next_offset(0).await), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_decode_ends_the_service_with_an_error() {
    let house = House::new(2).await;
    house.send(1, ["1", "panic-in-decode", "3"]);
    let error = house.start().await.end().await.expect_err("it must end");
    assert!(format!("{error:#}").contains(&format!("reading {} partition 1 panicked", house.topic())), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_another_process_moves_fences_the_worker_which_reads_on_from_there() {
    let house = House::new(1).await;
    let service = house.start().await;
    house.send(0, ["1"; 10]);
    house.until_read().await;
    house.desk.hold.store(true, Ordering::Relaxed);
    house.send(0, ["held"; 20]);
    house.until("it has tried", async || house.desk.attempts(10).len() > 1).await;
    // the other process applies some of what this one holds in its hands
    let mut tx = house.pool.begin().await.expect("a transaction");
    let moved = sqlx::query("UPDATE consumer_offsets SET next_offset = 17 WHERE next_offset = 10");
    assert_eq!(moved.execute(&mut *tx).await.expect("moved").rows_affected(), 1);
    let applied = "INSERT INTO quotients (partition, record_offset) SELECT 0, generate_series(10, 16)";
    sqlx::query(applied).execute(&mut *tx).await.expect("applied");
    tx.commit().await.expect("committed");
    house.desk.hold.store(false, Ordering::Relaxed);
    house.until_read().await;
    house.send(0, ["2"; 5]);
    house.until_read().await;
    assert_eq!((house.applied(0).await, house.refused()), ((0..35).collect(), vec![]));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_left_in_the_outbox_is_published_in_order_once_its_lease_has_run_out() {
    let house = House::new(1).await;
    let left = "INSERT INTO outbox (service, topic, payload, headers)
                SELECT service, $1, convert_to('{\"left\":' || n || '}', 'utf8'), '[]'
                FROM generate_series(1, 2500) AS n, (VALUES ('division'), ('another')) AS s (service) ORDER BY n";
    sqlx::query(left).bind(&house.settings.kafka.errors_topic).execute(&house.pool).await.expect("rows");
    let lease = "INSERT INTO relays VALUES ('division', gen_random_uuid(), now() + interval '2 seconds')
                 RETURNING held_until";
    let held_until: OffsetDateTime = sqlx::query_scalar(lease).fetch_one(&house.pool).await.expect("a lease");
    let sql = "SELECT count(*) FROM outbox WHERE service = 'division'";
    let rows = async || sqlx::query_scalar::<_, i64>(sql).fetch_one(&house.pool).await.expect("a count");
    let service = house.start().await;
    house.until("some is published", async || rows().await < 2_500).await;
    let now: OffsetDateTime = sqlx::query_scalar("SELECT now()").fetch_one(&house.pool).await.expect("a time");
    assert!(now > held_until, "the dead process may still be alive");
    house.until("all is published", async || rows().await == 0).await;
    assert_eq!(house.payloads(), (1..=2_500).map(|n| json!({ "left": n })).collect::<Vec<_>>());
    assert_eq!(house.count("outbox").await, 2_500, "another service's messages are not its own");
    service.stop().await.expect("a clean stop");
    assert_eq!(house.count("relays").await, 0, "the lease is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_while_idle_and_while_a_batch_cannot_be_applied_ends_well_within_ten_seconds() {
    let house = House::new(3).await;
    let service = house.start().await;
    house.send(0, ["1"; 10]);
    house.until_read().await;
    let asked = Instant::now();
    service.stop().await.expect("a clean stop");
    assert!(asked.elapsed() < Duration::from_secs(10), "idle: {:?}", asked.elapsed());
    assert_eq!(house.offset_of_group(0), Some(10), "lag monitors are told before it leaves");

    house.desk.hold.store(true, Ordering::Relaxed);
    house.send(1, ["held"]);
    let service = house.start().await;
    house.until("it has tried", async || house.desk.attempts(0).len() > 3).await;
    let asked = Instant::now();
    service.stop().await.expect("a clean stop");
    assert!(asked.elapsed() < Duration::from_secs(10), "held: {:?}", asked.elapsed());
    assert_eq!((house.next_offset(0).await, house.next_offset(1).await), (10, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_well_within_ten_seconds_though_no_transaction_does() {
    let house = House::new(3).await;
    let service = house.start().await;
    for partition in 0..3 {
        house.send(partition, ["stuck"]);
    }
    house.until("all are stuck", async || house.desk.attempts(0).len() == 3).await;
    let asked = Instant::now();
    service.stop().await.expect("a clean stop");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(house.count("quotients").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_one_event_can_take_less_than_20_ms() {
    let house = House::new(1).await;
    let service = house.start().await;
    house.until_read().await;
    let producer = house.producer();
    let mut fastest = Duration::MAX;
    for number in 0..200 {
        let began = Instant::now();
        producer.send(BaseRecord::<(), str>::to(house.topic()).partition(0).payload("1")).expect("queued");
        while house.next_offset(0).await <= number {
            producer.poll(Duration::ZERO);
        }
        fastest = fastest.min(began.elapsed());
    }
    // Nagle's algorithm and delayed acknowledgements made it 42 ms and more
    assert!(fastest < Duration::from_millis(20), "{fastest:?}");
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_position_somebody_has_locked_holds_up_no_other() {
    let house = House::new(3).await;
    for partition in 0..3 {
        house.send(partition, ["1"]);
    }
    let service = house.start().await;
    house.until_read().await;
    service.stop().await.expect("a clean stop");

    let mut lock = house.pool.begin().await.expect("a transaction");
    let locked = sqlx::query("SELECT 1 FROM consumer_offsets WHERE partition = 1 FOR UPDATE");
    locked.execute(&mut *lock).await.expect("locked");
    for partition in 0..3 {
        house.send(partition, ["2"]);
    }
    let service = house.start().await;
    for partition in [0, 2] {
        house.until("the others are read", async || house.next_offset(partition).await == 2).await;
    }
    house.until("it waits", async || house.health.complaints().contains_key("postgres")).await;
    assert_eq!(house.next_offset(1).await, 1);
    lock.rollback().await.expect("unlocked");
    house.until_read().await;
    house.until("it is healthy", async || house.health.complaints().is_empty()).await;
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_while_the_broker_is_away_ends_well_within_ten_seconds() {
    let root = tempfile::tempdir().expect("a directory");
    let mut broker = tokio::task::block_in_place(|| Kafka::start(root.path()).expect("Kafka"));
    let house = House::on(&broker.broker(), 3).await;
    let service = house.start().await;
    house.send(0, ["1", "2"]);
    house.until_read().await;
    tokio::task::block_in_place(|| broker.kill());
    house.until("it is missed", async || house.health.complaints().contains_key("kafka")).await;
    let asked = Instant::now();
    service.stop().await.expect("a clean stop");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}
