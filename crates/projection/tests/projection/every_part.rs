//! One projection that uses every part of the trait.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use events::Timestamp;
use projection::MIGRATIONS;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer},
};
use serde_json::{Value, json};
use sqlx::migrate::Migrator;

use crate::{
    auction::{self, Auction, BID, OFFER},
    fixture::{Fixture, Running},
};

async fn start(fixture: &Fixture) -> Running {
    let auction = Auction { results_topic: fixture.settings.output_topics[0].clone() };
    fixture.start_with(auction, &[&MIGRATIONS, &auction::MIGRATIONS]).await
}

/// Sends one record; returns when it is acknowledged.
fn send(fixture: &Fixture, lot: &str, bidder: Option<&str>, payload: &str) {
    let producer = fixture.producer();
    let mut record = BaseRecord::to(fixture.topic()).partition(0).key(lot).payload(payload);
    if let Some(bidder) = bidder {
        record = record.headers(OwnedHeaders::new().insert(Header { key: "bidder", value: Some(bidder) }));
    }
    producer.send(record).expect("queued");
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}

fn bid(amount: i64) -> String {
    json!({ "bid": amount }).to_string()
}

fn offer(closes_at: Timestamp) -> String {
    json!({ "offer": { "closes_at": closes_at.to_string(), "terms": { "least": 100 } } }).to_string()
}

fn in_seconds(seconds: u64) -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp((now + Duration::from_secs(seconds)).as_micros() as i64)
}

fn reasons(errors: &[(Value, HashMap<String, String>)]) -> Vec<&str> {
    errors.iter().map(|(payload, _)| payload["error"].as_str().expect("a reason")).collect()
}

#[test]
fn nested_event_types_have_a_schema_of_their_own_and_no_csv_form() {
    let valid = |schema: Value, record: &str| {
        let record: Value = serde_json::from_str(record).expect("JSON");
        jsonschema::validator_for(&schema).expect("a schema").is_valid(&record)
    };
    let records = [offer(in_seconds(1)), bid(3), "{}".to_owned()];
    assert_eq!([&OFFER, &BID].map(|event_type| event_type.csv.is_none()), [true; 2]);
    assert_eq!(records.each_ref().map(|record| valid(OFFER.schema(), record)), [true, false, false]);
    assert_eq!(records.each_ref().map(|record| valid(BID.schema(), record)), [false, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auction_takes_bids_until_it_closes_and_says_once_who_has_won() {
    let mut fixture = Fixture::new(1).await;
    fixture.add_output_topic("results").await;
    let service = start(&fixture).await;
    send(&fixture, "7", None, &offer(in_seconds(4)));
    send(&fixture, "7", Some("ann"), &bid(99));
    send(&fixture, "7", Some("ann"), &bid(100));
    send(&fixture, "7", Some("bob"), "{ \"bid\" : 120 }");
    send(&fixture, "7", Some("cid"), &bid(110));
    send(&fixture, "8", Some("cid"), &bid(110));
    send(&fixture, "x", Some("cid"), &bid(110));
    send(&fixture, "7", None, &bid(130));
    let results = fixture.settings.output_topics[0].clone();
    fixture.until("it is closed", async || fixture.messages(&results).len() == 1).await;
    // once it is closed
    send(&fixture, "7", Some("dan"), &bid(500));
    fixture.until_read().await;
    service.stop().await.expect("a clean stop");
    let service = start(&fixture).await;
    send(&fixture, "9", None, &offer(in_seconds(0)));
    fixture.until("the next one is closed", async || fixture.messages(&results).len() > 1).await;
    service.stop().await.expect("a clean stop");

    let expected =
        [json!({ "lot": 7, "winner": "bob", "amount": 120 }), json!({ "lot": 9, "winner": null, "amount": null })];
    let published = fixture.messages(&results);
    assert_eq!(published.iter().map(|(payload, _)| payload.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(published.iter().map(|(_, headers)| headers["ce_id"].as_str()).collect::<Vec<_>>(), ["lot-7", "lot-9"]);
    let errors = fixture.errors();
    assert_eq!(
        reasons(&errors),
        [
            "99 is less than 100",
            "110 is less than 121",
            "there is no lot 8",
            "the key names no lot",
            "the bid has no bidder",
            "lot 7 is closed"
        ]
    );
    // encoded again, or kept: the payload is what was sent
    let bids: Vec<_> = errors.iter().map(|(payload, _)| payload["bid"].as_i64()).collect();
    assert_eq!(bids, [99, 110, 110, 110, 130, 500].map(Some));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_messages_go_to_is_created_again_when_it_was_deleted() {
    let mut fixture = Fixture::new(1).await;
    fixture.add_output_topic("results").await;
    let results = fixture.settings.output_topics[0].clone();
    let service = start(&fixture).await;
    send(&fixture, "1", None, &offer(in_seconds(0)));
    fixture.until("it is closed", async || fixture.messages(&results).len() == 1).await;
    fixture.delete_topic(&results).await;
    send(&fixture, "2", None, &offer(in_seconds(0)));
    let is_there = async || fixture.topic_exists(&results) && !fixture.messages(&results).is_empty();
    fixture.until("the next one is published", is_there).await;
    assert_eq!(fixture.messages(&results)[0].1["ce_id"], "lot-2");
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_of_one_service_does_not_keep_another_from_starting() {
    let fixture = Fixture::new(1).await;
    // the fixture has run the common ones only
    let both: &[&Migrator] = &[&MIGRATIONS, &auction::MIGRATIONS];
    let with_auction = fixture.connect(both).await.expect("migrated");
    sqlx::query("SELECT * FROM lots").fetch_all(&with_auction).await.expect("a table");
    // an older process, or another service, that knows nothing of it
    fixture.connect(&[&MIGRATIONS]).await.expect("it starts");
    fixture.connect(both).await.expect("and so does the newer one");
}
