//! The stock service while its servers are restarted and its topic is replaced: on servers of its own.

mod house;

use events::stock::Movement::Incoming;
use house::{House, event};
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use runtime::{health::Health, kafka};
use sandbox::{Kafka, Postgres};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_kafka_may_be_killed_and_restarted_at_any_time() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut broker, mut database) = tokio::task::block_in_place(|| {
        (Kafka::start(root.path()).expect("Kafka"), Postgres::start(root.path()).expect("Postgres"))
    });
    database.create_database("onhand").expect("a database");
    let at = database.address();
    let house = House::on(
        2,
        vec![
            ("KAFKA_BROKER_URL".into(), broker.broker()),
            ("POSTGRES_HOSTNAME".into(), format!("{}:{}", at.host, at.port)),
            ("POSTGRES_USER".into(), at.user),
            ("POSTGRES_PASSWORD".into(), at.password),
            ("POSTGRES_DB".into(), "onhand".into()),
            ("STOCK_BATCH_SIZE".into(), "20".into()),
        ],
    )
    .await;
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
