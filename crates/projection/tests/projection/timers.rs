//! Timed work: when it is done, and what becomes of a row that cannot be applied.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use runtime::kafka;
use serde_json::json;

use crate::fixture::Fixture;

fn wall_clock() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_micros() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_is_called_when_its_time_has_come_not_before_and_not_much_later() {
    let fixture = Fixture::new(1).await;
    let service = fixture.start().await;
    fixture.send(0, (1..=10).map(|n| format!("alarm {}", 1_500 + 150 * n)));
    fixture.until("all alarms have rung", async || fixture.count("rung").await == 10).await;
    let count = async |sql: &str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&fixture.pool).await.expect("a count");
    assert_eq!(count("SELECT count(*) FROM rung WHERE now < at").await, 0);
    // looking once a second would have found them in two or three heaps
    let times = count("SELECT count(DISTINCT now) FROM rung").await;
    assert!(times > 4, "{times}");
    fixture.until("what it said is published", async || fixture.count("outbox").await == 0).await;
    let rung: i64 = fixture.payloads().iter().filter_map(|payload| payload["rung"].as_i64()).sum();
    assert_eq!(rung, 10);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_that_waited_while_no_process_ran_is_found_at_the_start() {
    let fixture = Fixture::new(1).await;
    sqlx::query("INSERT INTO alarms VALUES (0, $1)").bind(wall_clock()).execute(&fixture.pool).await.expect("an alarm");
    let service = fixture.start().await;
    fixture.until("it has rung", async || fixture.count("rung").await == 1).await;
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_counts_only_once_the_partition_is_read_to_its_end() {
    let fixture = Fixture::new(1).await;
    let service = fixture.start().await;
    fixture.controls.hold.store(true, Ordering::Relaxed);
    fixture.send(0, ["alarm 3000"]);
    let at = async || {
        sqlx::query_scalar::<_, i64>("SELECT at FROM alarms").fetch_optional(&fixture.pool).await.expect("rows")
    };
    fixture.until("it is set", async || at().await.is_some()).await;
    // it falls due while these cannot be applied
    fixture.send(0, ["held"; 7]);
    let due = at().await.expect("not yet");
    fixture.until("it is long due", async || wall_clock() > due + 1_000_000).await;
    fixture.until("they are tried", async || fixture.controls.attempts(7).len() > 3).await;
    assert_eq!(fixture.count("rung").await, 0);
    fixture.controls.hold.store(false, Ordering::Relaxed);
    fixture.until("it has rung", async || fixture.count("rung").await == 1).await;
    let applied: i64 = sqlx::query_scalar("SELECT applied FROM rung").fetch_one(&fixture.pool).await.expect("a count");
    assert_eq!(applied, 8);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_work_is_done_while_records_never_stop_coming() {
    let fixture = Fixture::new(1).await;
    let service = fixture.start().await;
    let producer = fixture.producer();
    let send = |word: &str| {
        let mut record = BaseRecord::<(), str>::to(fixture.topic()).partition(0).payload(word);
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
                rung = tokio::runtime::Handle::current().block_on(fixture.count("rung")) == 1;
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
    let fixture = Fixture::new(1).await;
    let service = fixture.start().await;
    fixture.send(0, ["alarm 3000"]);
    fixture.until("it is set", async || fixture.count("alarms").await == 1).await;
    fixture.send(0, ["0"]);
    fixture.until("it is refused", async || fixture.refused().len() == 1).await;
    assert_eq!(fixture.count("rung").await, 0, "refused too late for this test");
    fixture.until("it has rung", async || fixture.count("rung").await == 1).await;
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_timed_work_that_cannot_be_applied_is_refused_alone() {
    let fixture = Fixture::new(1).await;
    // before 1970 no alarm rings
    let alarms = "INSERT INTO alarms SELECT 0, CASE n WHEN 40 THEN -1 ELSE n END FROM generate_series(1, 100) AS n";
    sqlx::query(alarms).execute(&fixture.pool).await.expect("alarms");
    let service = fixture.start().await;
    fixture.until("all have rung", async || fixture.count("alarms").await == 0).await;
    fixture.until("what it said is published", async || fixture.count("outbox").await == 0).await;
    assert_eq!(fixture.count("rung").await, 99);
    let errors: Vec<_> = fixture.payloads().into_iter().filter(|payload| payload.get("error").is_some()).collect();
    let why = "new row for relation \"rung\" violates check constraint \"loud\"";
    assert_eq!(errors, [json!({ "error": why })]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_hold_markers_of_transactions_are_passed() {
    let fixture = Fixture::new(1).await;
    let producer: BaseProducer = kafka::producer(&fixture.settings.kafka, "test")
        .set("transactional.id", fixture.topic())
        .set("message.timeout.ms", "10000")
        .create()
        .expect("a producer");
    let patience = Duration::from_secs(30);
    let send = |commit: bool| {
        producer.begin_transaction().expect("begun");
        producer.send(BaseRecord::<(), str>::to(fixture.topic()).partition(0).payload("alarm 100")).expect("queued");
        if commit {
            producer.commit_transaction(patience).expect("committed");
        } else {
            producer.flush(patience).expect("acknowledged");
            producer.abort_transaction(patience).expect("aborted");
        }
    };
    tokio::task::block_in_place(|| producer.init_transactions(patience).expect("a transactional producer"));
    let service = fixture.start().await;
    // a record and a marker each: the last offset never holds a record
    tokio::task::block_in_place(|| [true, false, false].map(send));
    fixture.until_read().await;
    assert_eq!((fixture.next_offset(0).await, fixture.applied(0).await), (6, vec![0]));
    // what is at the end of the topic counts as read to its end
    fixture.until("it has rung", async || fixture.count("rung").await == 1).await;
    tokio::task::block_in_place(|| send(true));
    fixture.until("it has rung", async || fixture.count("rung").await == 2).await;
    service.stop().await.expect("a clean stop");
}
