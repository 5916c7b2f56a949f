//! The stock service while its servers are restarted and its topic is replaced: on servers of its own.

mod fixture;

use std::time::Duration;

use events::stock::Movement::{Incoming, Sale};
use fixture::{Fixture, event};
use rdkafka::producer::Producer;
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use runtime::{health::Health, kafka};
use sandbox::{Kafka, Postgres, shared};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The variables that name a database of this server.
fn environment(database: &Postgres) -> Vec<(String, String)> {
    database.create_database("onhand").expect("a database");
    let at = database.address();
    let variables = [
        ("POSTGRES_HOSTNAME", format!("{}:{}", at.host, at.port)),
        ("POSTGRES_USER", at.user),
        ("POSTGRES_PASSWORD", at.password),
        ("POSTGRES_DB", "onhand".into()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_kafka_may_be_killed_and_restarted_at_any_time() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut broker, mut database) = tokio::task::block_in_place(|| {
        (Kafka::start(root.path()).expect("Kafka"), Postgres::start(root.path()).expect("Postgres"))
    });
    let mut variables = environment(&database);
    variables.push(("KAFKA_BROKER_URL".into(), broker.broker()));
    variables.push(("STOCK_BATCH_SIZE".into(), "20".into()));
    let fixture = Fixture::on(2, variables).await;
    let service = fixture.start();
    let mut sent = 0;
    let mut send = || {
        let events: Vec<_> =
            (sent..sent + 3_000).map(|number| event(number, Incoming, (number % 7) as i64, 1)).collect();
        fixture.send(&events);
        sent += 3_000;
        sent as i64
    };
    send();
    fixture.until("some are applied", async || fixture.count("transactions").await > 0).await;
    tokio::task::block_in_place(|| {
        database.kill();
        database.restart().expect("Postgres again");
    });
    send();
    tokio::task::block_in_place(|| {
        broker.kill();
        broker.restart().expect("Kafka again");
    });
    let all = send();
    tokio::task::block_in_place(|| {
        broker.kill();
        database.kill();
        database.restart().expect("Postgres again");
        broker.restart().expect("Kafka again");
    });
    fixture.until("all are applied", async || fixture.try_count("transactions").await == Some(all)).await;
    let amounts: i64 = fixture.items().await.iter().map(|(_, _, amount)| amount).sum();
    assert_eq!(amounts, all);
    service.stop().await.expect("a clean stop");
}

/// A Postgres that keeps commits which need not be durable in memory for seconds, so that a
/// crash loses them; and a stock service's topics and tables on it.
struct Forgetful {
    database: Postgres,
    fixture: Fixture,
    _root: TempDir,
}

impl Forgetful {
    async fn start() -> Forgetful {
        let root = tempfile::tempdir().expect("a directory");
        let mut database = tokio::task::block_in_place(|| Postgres::start(root.path()).expect("Postgres"));
        let mut variables = shared().environment("unused");
        variables.extend(environment(&database));
        variables.push(("STOCK_RETRY_MS".into(), "600000".into()));
        let fixture = Fixture::on(1, variables).await;
        for sql in ["CREATE TABLE marks (mark text)", "ALTER SYSTEM SET wal_writer_delay = '10s'"] {
            sqlx::raw_sql(sql).execute(&fixture.pool).await.expect("done");
        }
        // in order, not as a crash: the setting holds from the start, and the table is kept
        tokio::task::block_in_place(|| database.restart().expect("Postgres again"));
        Forgetful { database, fixture, _root: root }
    }

    /// Everything committed before is durable.
    async fn flush(&self) {
        let sql = "BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO marks VALUES ('durable'); COMMIT";
        sqlx::raw_sql(sql).execute(&self.fixture.pool).await.expect("durable");
    }

    /// A commit like those of the service, not durable at once. Commits become durable in their
    /// order: where this one is lost, all later ones are.
    async fn mark(&self, mark: &str) {
        sqlx::query("INSERT INTO marks VALUES ($1)").bind(mark).execute(&self.fixture.pool).await.expect("marked");
    }

    /// Postgres crashes, and starts again.
    fn crash(&mut self) {
        tokio::task::block_in_place(|| {
            self.database.kill();
            self.database.restart().expect("Postgres again");
        });
    }

    async fn has_lost(&self, mark: &str) -> bool {
        let sql = "SELECT NOT EXISTS (SELECT FROM marks WHERE mark = $1)";
        sqlx::query_scalar(sql).bind(mark).fetch_one(&self.fixture.pool).await.expect("an answer")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_of_postgres_took_back_is_read_again_though_nothing_new_comes() {
    let mut postgres = Forgetful::start().await;
    let service = postgres.fixture.start();
    let mut lost = 0;
    // the server may have written its log just before it crashed: then nothing is lost
    for round in 1.. {
        let first = round as u128 * 10;
        postgres.fixture.send(&[event(first, Incoming, 3, 5), event(first + 1, Sale, 3, 1)]);
        postgres.fixture.until_read().await;
        postgres.flush().await;
        let mark = format!("before the tail of round {round}");
        postgres.mark(&mark).await;
        postgres.fixture.send(&[
            event(first + 2, Incoming, 3, 5),
            event(first + 3, Incoming, 100 + round, 7),
            event(first + 4, Sale, 9, 2),
            event(first + 2, Incoming, 3, 5),
        ]);
        postgres.fixture.until_read().await;
        postgres.crash();
        lost += u32::from(postgres.has_lost(&mark).await);

        let fixture = &postgres.fixture;
        let all = (Some(4 * round), Some(round));
        let there = async || (fixture.try_count("transactions").await, fixture.try_count("waiting_sales").await);
        fixture.until("all is there again", async || there().await == all).await;
        fixture.until_read().await;
        let new_cards = (1..=round).map(|round| (4, 100 + round, 7));
        let expected: Vec<_> = std::iter::once((4, 3, 9 * round)).chain(new_cards).collect();
        assert_eq!(fixture.items().await, expected);
        assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
        if lost == 2 {
            break;
        }
        assert!(round < 10, "of {round} crashes only {lost} lost anything");
    }
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_published_before_a_crash_of_postgres_can_no_longer_take_it_back() {
    let mut postgres = Forgetful::start().await;
    let service = postgres.fixture.start();
    postgres.fixture.send(&[event(1, Incoming, 3, 5)]);
    postgres.fixture.until_read().await;
    // the server may write its log on its own in one round, but not in all of them
    for round in 1..=3 {
        postgres.flush().await;
        let mark = format!("before refusal {round}");
        postgres.mark(&mark).await;
        postgres.fixture.send(&[event(1, Incoming, 3, 5 + round)]);
        let refused = async || postgres.fixture.error_records().len() == round as usize;
        postgres.fixture.until("it is refused", refused).await;
        postgres.crash();
        assert!(!postgres.has_lost(&mark).await, "refusal {round} was published, and Postgres could forget it");
        postgres.fixture.until_read().await;
    }

    let fixture = &postgres.fixture;
    let errors: Vec<_> = fixture.error_records().iter().map(|record| record.payload["value"].clone()).collect();
    assert_eq!((errors, fixture.items().await), (vec![json!("6"), json!("7"), json!("8")], vec![(4, 3, 5)]));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_never_pauses_and_a_postgres_that_does_are_no_lost_records() {
    let root = tempfile::tempdir().expect("a directory");
    let database = tokio::task::block_in_place(|| Postgres::start(root.path()).expect("Postgres"));
    let mut variables = environment(&database);
    variables.push(("KAFKA_BROKER_URL".into(), shared().broker.clone()));
    let fixture = Fixture::on(6, variables).await;
    let service = fixture.start();
    let stop = CancellationToken::new();
    let producer = fixture.producer();
    let sent = std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut sent = 0;
            while !stop.is_cancelled() {
                fixture.produce(&producer, &event(sent, Incoming, (sent % 97) as i64, 1));
                sent += 1;
                // some 20,000 a second: more than that and the service would not be at the end
                if sent % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            producer.flush(Duration::from_secs(60)).expect("acknowledged");
            sent as i64
        });
        // Kafka and Postgres are compared every 5 s
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(7));
            database.pause();
            std::thread::sleep(Duration::from_secs(2));
            database.resume();
        }
        stop.cancel();
        producing.join().expect("no panic")
    });
    fixture.until("all are applied", async || fixture.try_count("transactions").await == Some(sent)).await;
    service.stop().await.expect("a clean stop: it must not have ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_again_stops_the_service_with_what_to_do() {
    let fixture = Fixture::new(1, &[]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 10)]);
    fixture.until_read().await;
    service.stop().await.expect("a clean stop");

    let admin: AdminClient<DefaultClientContext> =
        kafka::client(&fixture.settings.kafka, "test").create().expect("a client");
    admin.delete_topics(&[&fixture.topic], &AdminOptions::new()).await.expect("asked")[0].as_ref().expect("deleted");
    let create = async || {
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        kafka::ensure_topics(&fixture.settings.kafka, &[&fixture.topic], &health, &shutdown).await.is_ok()
    };
    fixture.until("it is created again", create).await;
    fixture.send(&[event(2, Incoming, 3, 10), event(3, Incoming, 3, 10)]);

    let error = format!("{:#}", fixture.start().end().await.expect_err("it must stop"));
    assert!(error.contains("was deleted and created again since stock read it"), "{error}");
    assert!(error.contains(&format!("onhand offsets --forget stock --topic {}", fixture.topic)), "{error}");
    assert_eq!(fixture.items().await, [(4, 3, 10)]);

    // the way out
    projection::forget(&mut fixture.pool.acquire().await.expect("a connection"), "stock", &fixture.topic)
        .await
        .expect("forgotten");
    let service = fixture.start();
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 30)]);
    service.stop().await.expect("a clean stop");
}
