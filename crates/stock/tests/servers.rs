//! The stock service while its servers are restarted and its topic is replaced: on servers of its own.

mod house;

use std::time::Duration;

use events::stock::Movement::Incoming;
use house::{House, event};
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use runtime::{health::Health, kafka};
use sandbox::{Kafka, Postgres, shared};
use tokio_util::sync::CancellationToken;

/// A house on a Postgres of its own, and on the broker.
async fn house_on(database: &Postgres, broker: &str, partitions: i32, variables: &[(&str, &str)]) -> House {
    database.create_database("onhand").expect("a database");
    let at = database.address();
    let mut all: Vec<(String, String)> = vec![
        ("KAFKA_BROKER_URL".into(), broker.into()),
        ("POSTGRES_HOSTNAME".into(), format!("{}:{}", at.host, at.port)),
        ("POSTGRES_USER".into(), at.user),
        ("POSTGRES_PASSWORD".into(), at.password),
        ("POSTGRES_DB".into(), "onhand".into()),
    ];
    all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    House::on(partitions, all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_never_pauses_and_a_postgres_that_does_are_no_lost_records() {
    let root = tempfile::tempdir().expect("a directory");
    let database = tokio::task::block_in_place(|| Postgres::start(root.path()).expect("Postgres"));
    let house = house_on(&database, &shared().broker, 6, &[]).await;
    let service = house.start();
    let stop = CancellationToken::new();
    let sent = std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut sent = 0;
            while !stop.is_cancelled() {
                let events: Vec<_> =
                    (sent..sent + 5_000).map(|number| event(number, Incoming, (number % 97) as i64, 1)).collect();
                house.send(&events);
                sent += 5_000;
            }
            sent as i64
        });
        // Kafka and Postgres are compared every 5 s
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(1_200));
            database.pause();
            std::thread::sleep(Duration::from_millis(1_800));
            database.resume();
        }
        stop.cancel();
        producing.join().expect("no panic")
    });
    house.until("all are applied", async || house.try_count("transactions").await == Some(sent)).await;
    service.stop().await.expect("a clean stop: it must not have ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_is_published_that_a_crash_of_postgres_takes_back() {
    let root = tempfile::tempdir().expect("a directory");
    let mut database = tokio::task::block_in_place(|| Postgres::start(root.path()).expect("Postgres"));
    let house = house_on(&database, &shared().broker, 1, &[]).await;
    // asynchronous commits are written seconds later, so that a crash takes them back
    for sql in ["ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()"] {
        sqlx::raw_sql(sql).execute(&house.pool).await.expect("set");
    }
    let service = house.start();
    house.send(&[event(1, Incoming, 3, 5)]);
    house.until("it is applied", async || house.count("transactions").await == 1).await;
    house.send_raw([(b"4-3".as_slice(), b"hello".as_slice())].into_iter());
    house.until("it is published", async || house.count_of_errors() == 1).await;
    tokio::task::block_in_place(|| database.kill());
    service.stop().await.expect("a clean stop");
    tokio::task::block_in_place(|| database.restart().expect("Postgres again"));
    let next = async || {
        let sql = "SELECT sum(next_offset)::bigint FROM consumer_offsets";
        sqlx::query_scalar::<_, Option<i64>>(sql).fetch_one(&house.pool).await.ok().flatten()
    };
    house.until("Postgres answers", async || house.try_count("stores").await.is_some()).await;
    assert_eq!(next().await, Some(2), "what is published must be durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_kafka_may_be_killed_and_restarted_at_any_time() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut broker, mut database) = tokio::task::block_in_place(|| {
        (Kafka::start(root.path()).expect("Kafka"), Postgres::start(root.path()).expect("Postgres"))
    });
    let house = house_on(&database, &broker.broker(), 2, &[("STOCK_BATCH_SIZE", "20")]).await;
    let service = house.start();
    let mut sent = 0;
    let mut send = || {
        let events: Vec<_> =
            (sent..sent + 3_000).map(|number| event(number, Incoming, (number % 7) as i64, 1)).collect();
        house.send(&events);
        sent += 3_000;
        sent as i64
    };
    send();
    house.until("some are applied", async || house.count("transactions").await > 0).await;
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
    house.until("all are applied", async || house.try_count("transactions").await == Some(all)).await;
    let amounts: i64 = house.items().await.iter().map(|(_, _, amount)| amount).sum();
    assert_eq!(amounts, all);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_anew_stops_the_service_with_what_to_do() {
    let house = House::new(1, &[]).await;
    let service = house.start();
    house.send(&[event(1, Incoming, 3, 10)]);
    house.until_read().await;
    service.stop().await.expect("a clean stop");

    let admin: AdminClient<DefaultClientContext> =
        kafka::client(&house.settings.kafka, "test").create().expect("a client");
    admin.delete_topics(&[&house.topic], &AdminOptions::new()).await.expect("asked")[0].as_ref().expect("deleted");
    let create = async || {
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        kafka::ensure_topics(&house.settings.kafka, &[&house.topic], &health, &shutdown).await.is_ok()
    };
    house.until("it is created again", create).await;
    house.send(&[event(2, Incoming, 3, 10), event(3, Incoming, 3, 10)]);

    let error = format!("{:#}", house.start().end().await.expect_err("it must stop"));
    assert!(error.contains("was deleted and created again since stock read it"), "{error}");
    assert!(error.contains(&format!("onhand offsets --forget stock --topic {}", house.topic)), "{error}");
    assert_eq!(house.items().await, [(4, 3, 10)]);

    // the way out
    projection::forget(&mut house.pool.acquire().await.expect("a connection"), "stock", &house.topic)
        .await
        .expect("forgotten");
    let service = house.start();
    house.until_read().await;
    assert_eq!(house.items().await, [(4, 3, 30)]);
    service.stop().await.expect("a clean stop");
}
