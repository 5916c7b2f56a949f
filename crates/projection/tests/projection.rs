//! A projection on a real Kafka and a real Postgres: what happens to records that cannot be
//! applied, to their neighbours, and to the service.

mod house;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use house::{House, Refused};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use runtime::kafka;
use sandbox::Kafka;
use serde_json::json;
use time::OffsetDateTime;

fn refused(offset: i64, class: &str, error: &str) -> Refused {
    Refused { partition: 0, offset, class: class.into(), error: error.into() }
}

fn not_applicable(offset: i64) -> Refused {
    let why = "the record cannot be applied: division by zero";
    refused(offset, "NotApplicable", why)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_record_in_a_large_batch_is_refused_alone_and_its_neighbours_are_applied_once_and_in_order() {
    let house = House::new(1).await;
    house.send(0, (0..1_000).map(|number| if number == 617 { "0".to_owned() } else { (number + 1).to_string() }));
    let service = house.start().await;
    house.until_read().await;
    assert_eq!(house.applied(0).await, (0..617).chain(618..1_000).collect::<Vec<_>>());
    assert_eq!(house.refused(), [not_applicable(617)]);
    let largest = house.desk.calls.lock().expect("no panic").iter().map(|(_, offsets)| offsets.len()).max();
    assert!(largest > Some(100), "the batches were small: {largest:?}");
    // halves, not one by one
    assert!(house.desk.committed.lock().expect("no panic").len() < 60);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_every_record_is_bad_is_refused_record_by_record() {
    let house = House::new(1).await;
    house.send(0, ["0"; 70]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!(house.refused(), (0..70).map(not_applicable).collect::<Vec<_>>());
    assert_eq!((house.applied(0).await, house.next_offset(0).await), (vec![], 70));
    house.send(0, ["5"]);
    house.until_read().await;
    assert_eq!(house.applied(0).await, [70]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_beyond_a_limit_of_the_database_is_refused_alone_too() {
    let house = House::new(1).await;
    // what does not compress to a third of a page does not fit an index
    let mut seed = 1_u64;
    let digit = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (seed >> 33) as u8 % 90)
    });
    let long = format!("long {}", digit.take(20_000).collect::<String>());
    house.send(0, ["1", &long, "3"]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!(house.applied(0).await, [0, 2]);
    let refused = house.refused();
    assert_eq!((refused.len(), refused[0].offset, refused[0].class.as_str()), (1, 1, "NotApplicable"));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_the_order_of_their_records_whoever_refuses_them() {
    let house = House::new(1).await;
    let words = ["refused", "x", "0", "y", "1", "refused", "z", "0", "v", "w", "refused"];
    house.send(0, words);
    let service = house.start().await;
    house.until_read().await;
    let expected: Vec<_> = (0..)
        .zip(words)
        .filter(|(_, word)| *word != "1")
        .map(|(offset, word)| match word {
            "0" => not_applicable(offset),
            "refused" => refused(offset, "Forbidden", "the rules forbid it"),
            word => refused(offset, "InvalidEvent", &format!("{word} is no number")),
        })
        .collect();
    assert_eq!(house.refused(), expected);
    // and in one batch, in which nothing fails
    house.send(0, ["refused", "x", "refused", "y", "2"]);
    house.until_read().await;
    let order: Vec<_> = house.refused().iter().skip(expected.len()).map(|refused| refused.offset).collect();
    assert_eq!((order, house.applied(0).await), (vec![11, 12, 13, 14], vec![4, 15]));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_reason_holds_a_nul_character_is_refused_and_holds_up_nothing() {
    let house = House::new(1).await;
    house.send(0, ["1", "a\0b", "3"]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!(house.applied(0).await, [0, 2]);
    let found = house.refused();
    assert_eq!((found.len(), found[0].offset, found[0].class.as_str()), (1, 1, "InvalidEvent"));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_passes_is_retried_until_the_batch_is_applied_once() {
    let house = House::new(1).await;
    house.send(0, ["1", "transient 4", "3"]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!((house.applied(0).await, house.refused()), (vec![0, 1, 2], vec![]));
    // not counted as attempts, which are for what was assumed
    assert_eq!(house.desk.attempts(1), [0; 5]);
    assert!(house.health.complaints().is_empty(), "{:?}", house.health.complaints());
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_assumed_wrongly_is_applied_again_at_once_with_the_attempts_number() {
    let house = House::new(1).await;
    house.send(0, ["1", "stale 7", "3"]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!((house.applied(0).await, house.refused()), (vec![0, 1, 2], vec![]));
    assert_eq!(house.desk.attempts(1), [0, 1, 2, 3, 4, 5, 6, 7]);
    // the next batch begins anew
    house.send(0, ["stale 1"]);
    house.until_read().await;
    assert_eq!(house.desk.attempts(3), [0, 1]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_again_and_again_is_applied_in_the_end() {
    let house = House::new(1).await;
    house.send(0, ["stale 13"]);
    let service = house.start().await;
    house.until_read().await;
    // 11 at once; then it is read again, after a pause
    assert_eq!((house.applied(0).await, house.desk.attempts(0)), (vec![0], (0..11).chain(0..3).collect()));
    service.stop().await.expect("a clean stop");
}

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

fn wall_clock() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_micros() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_is_called_when_its_time_has_come_not_before_and_not_much_later() {
    let house = House::new(1).await;
    let service = house.start().await;
    house.send(0, (1..=10).map(|n| format!("alarm {}", 1_500 + 150 * n)));
    house.until("all alarms have rung", async || house.count("rung").await == 10).await;
    let count = async |sql: &str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&house.pool).await.expect("a count");
    assert_eq!(count("SELECT count(*) FROM rung WHERE now < at").await, 0);
    // looking once a second would have found them in two or three heaps
    let times = count("SELECT count(DISTINCT now) FROM rung").await;
    assert!(times > 4, "{times}");
    house.until("what it said is published", async || house.count("outbox").await == 0).await;
    let rung: i64 = house.payloads().iter().filter_map(|payload| payload["rung"].as_i64()).sum();
    assert_eq!(rung, 10);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_that_waited_while_no_process_ran_is_found_at_the_start() {
    let house = House::new(1).await;
    sqlx::query("INSERT INTO alarms VALUES (0, $1)").bind(wall_clock()).execute(&house.pool).await.expect("an alarm");
    let service = house.start().await;
    house.until("it has rung", async || house.count("rung").await == 1).await;
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_counts_only_once_the_partition_is_read_to_its_end() {
    let house = House::new(1).await;
    let service = house.start().await;
    house.desk.hold.store(true, Ordering::Relaxed);
    house.send(0, ["alarm 3000"]);
    let at =
        async || sqlx::query_scalar::<_, i64>("SELECT at FROM alarms").fetch_optional(&house.pool).await.expect("rows");
    house.until("it is set", async || at().await.is_some()).await;
    // it falls due while these cannot be applied
    house.send(0, ["held"; 7]);
    let due = at().await.expect("not yet");
    house.until("it is long due", async || wall_clock() > due + 1_000_000).await;
    house.until("they are tried", async || house.desk.attempts(7).len() > 3).await;
    assert_eq!(house.count("rung").await, 0);
    house.desk.hold.store(false, Ordering::Relaxed);
    house.until("it has rung", async || house.count("rung").await == 1).await;
    let applied: i64 = sqlx::query_scalar("SELECT applied FROM rung").fetch_one(&house.pool).await.expect("a count");
    assert_eq!(applied, 8);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_is_done_while_records_never_stop_coming() {
    let house = House::new(1).await;
    let service = house.start().await;
    let producer = house.producer();
    let send = |word: &str| {
        let mut record = BaseRecord::<(), str>::to(house.topic()).partition(0).payload(word);
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(1));
        }
        producer.poll(Duration::ZERO);
    };
    send("alarm 1000");
    let stop = AtomicBool::new(false);
    let rung = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // each batch takes longer than the next one takes to come
                    send("slow 5");
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let began = Instant::now();
            let mut rung = false;
            while !rung && began.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(50));
                rung = tokio::runtime::Handle::current().block_on(house.count("rung")) == 1;
            }
            stop.store(true, Ordering::Relaxed);
            rung
        })
    });
    assert!(rung);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_refused_alone_leaves_timed_work_as_it_was() {
    let house = House::new(1).await;
    let service = house.start().await;
    house.send(0, ["alarm 3000"]);
    house.until("it is set", async || house.count("alarms").await == 1).await;
    house.send(0, ["0"]);
    house.until("it is refused", async || house.refused().len() == 1).await;
    assert_eq!(house.count("rung").await, 0, "refused too late for this test");
    house.until("it has rung", async || house.count("rung").await == 1).await;
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_timed_work_that_cannot_be_applied_is_refused_alone() {
    let house = House::new(1).await;
    // before 1970 no alarm rings
    let alarms = "INSERT INTO alarms SELECT 0, CASE n WHEN 40 THEN -1 ELSE n END FROM generate_series(1, 100) AS n";
    sqlx::query(alarms).execute(&house.pool).await.expect("alarms");
    let service = house.start().await;
    house.until("all have rung", async || house.count("alarms").await == 0).await;
    house.until("what it said is published", async || house.count("outbox").await == 0).await;
    assert_eq!(house.count("rung").await, 99);
    let errors: Vec<_> = house.payloads().into_iter().filter(|payload| payload.get("error").is_some()).collect();
    let why = "new row for relation \"rung\" violates check constraint \"loud\"";
    assert_eq!(errors, [json!({ "error": why })]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_end_in_time_is_applied_in_smaller_parts_and_refuses_nothing() {
    let mut house = House::new(1).await;
    house.settings.transaction_timeout = Duration::from_millis(600);
    house.send(0, ["slow 20"; 100]);
    let service = house.start().await;
    house.until_read().await;
    assert_eq!((house.applied(0).await, house.refused()), ((0..100).collect(), vec![]));
    let largest = house.desk.calls.lock().expect("no panic").iter().map(|(_, offsets)| offsets.len()).max();
    assert!(largest > Some(30), "all of it would have fitted: {largest:?}");
    service.stop().await.expect("a clean stop");
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
async fn offsets_that_hold_markers_of_transactions_are_passed() {
    let house = House::new(1).await;
    let producer: BaseProducer = kafka::producer(&house.settings.kafka, "test")
        .set("transactional.id", house.topic())
        .set("message.timeout.ms", "10000")
        .create()
        .expect("a producer");
    let patience = Duration::from_secs(30);
    let send = |commit: bool| {
        producer.begin_transaction().expect("begun");
        producer.send(BaseRecord::<(), str>::to(house.topic()).partition(0).payload("alarm 100")).expect("queued");
        if commit {
            producer.commit_transaction(patience).expect("committed");
        } else {
            producer.flush(patience).expect("acknowledged");
            producer.abort_transaction(patience).expect("aborted");
        }
    };
    tokio::task::block_in_place(|| producer.init_transactions(patience).expect("a transactional producer"));
    let service = house.start().await;
    // a record and a marker each: the last offset never holds a record
    tokio::task::block_in_place(|| [true, false, false].map(send));
    house.until_read().await;
    assert_eq!((house.next_offset(0).await, house.applied(0).await), (6, vec![0]));
    // what is at the end of the topic counts as read to its end
    house.until("it has rung", async || house.count("rung").await == 1).await;
    tokio::task::block_in_place(|| send(true));
    house.until("it has rung", async || house.count("rung").await == 2).await;
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
