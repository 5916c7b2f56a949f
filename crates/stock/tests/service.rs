//! The stock service on a real Kafka and a real Postgres.

mod fixture;

use events::{
    Timestamp,
    stock::{
        Movement::{Incoming, Sale},
        StockEvent,
    },
};
use fixture::{Fixture, event};
use serde_json::json;

/// Tries of the waiting sales so far, oldest sale first.
async fn tries(fixture: &Fixture) -> Vec<i32> {
    let sql = "SELECT tries FROM waiting_sales ORDER BY id";
    sqlx::query_scalar(sql).fetch_all(&fixture.pool).await.expect("tries")
}

/// What waits is due now, as if its pause were over.
async fn make_due(fixture: &Fixture) {
    let sql = "UPDATE waiting_sales SET next_try_at = now()";
    sqlx::query(sql).execute(&fixture.pool).await.expect("due");
}

#[tokio::test(flavor = "multi_thread")]
async fn goods_come_in_are_sold_and_are_counted_once() {
    let fixture = Fixture::new(3, &[]).await;
    let service = fixture.start();
    fixture.send(&[
        event(1, Incoming, 3, 400),
        event(2, Sale, 3, 20),
        event(1, Incoming, 3, 400),
        event(3, Incoming, 7, 5),
    ]);
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 380), (4, 7, 5)]);
    assert_eq!(fixture.count("transactions").await, 3);
    assert!(fixture.error_records().is_empty());
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_sale_waits_for_its_stock_in_the_same_batch_and_across_restarts() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Sale, 1, 5), event(2, Sale, 2, 5), event(3, Incoming, 2, 9)]);
    fixture.until_read().await;
    assert_eq!((fixture.items().await, fixture.count("waiting_sales").await), (vec![(4, 2, 4)], 1));
    service.stop().await.expect("a clean stop");

    let service = fixture.start();
    fixture.send(&[event(4, Incoming, 1, 5)]);
    fixture.until_read().await;
    assert_eq!((fixture.items().await, fixture.count("waiting_sales").await), (vec![(4, 1, 0), (4, 2, 4)], 0));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_that_never_fits_is_refused_after_its_last_try_and_may_come_again() {
    // the test moves the clock, by moving what is due
    let fixture = Fixture::new(1, &[("KAFKA_EVENT_RETRIES", "2"), ("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 10), event(2, Sale, 3, 30), event(3, Sale, 9, 1)]);
    fixture.until_read().await;
    assert_eq!(tries(&fixture).await, [0, 0]);
    make_due(&fixture).await;
    fixture.until("both were tried", async || tries(&fixture).await == [1, 1]).await;
    assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
    make_due(&fixture).await;
    fixture.until("both are given up", async || fixture.count("waiting_sales").await == 0).await;
    fixture.until_read().await;
    let mut reasons: Vec<_> = fixture.error_records().iter().map(|record| record.payload["error"].clone()).collect();
    reasons.sort_by_key(ToString::to_string);
    assert_eq!(reasons, ["4-3 stock amount would be less than 0: -20!", "4-9 does not exist!"]);

    fixture.send(&[event(4, Incoming, 3, 20), event(2, Sale, 3, 30)]);
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 0)]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_other_content_is_refused_also_while_the_first_one_waits() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 10), event(2, Sale, 8, 1)]);
    fixture.until_read().await;
    fixture.send(&[
        event(1, Incoming, 3, 11),
        event(2, Sale, 8, 2),
        event(1, Incoming, 3, 10),
        event(5, Incoming, 3, 1),
    ]);
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 11)]);
    let errors: Vec<_> = fixture
        .error_records()
        .iter()
        .map(|record| record.header("__connect.errors.exception.class.name").to_owned())
        .collect();
    assert_eq!(errors, ["ConflictingTransaction", "ConflictingTransaction"]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_event_goes_to_the_errors_with_its_bytes_and_holds_up_nothing() {
    let fixture = Fixture::new(1, &[]).await;
    let service = fixture.start();
    let good = event(1, Incoming, 3, 10).to_json();
    let numbers = r#"{"transaction_id":"00000000-0000-0000-0000-000000000002","event_type":"sale","date":"2019-04-14T03:47:13Z","store_number":4,"item_number":3,"value":4,"cashier":"Eve"}"#;
    let unknown = r#"{"transaction_id":"00000000-0000-0000-0000-000000000003","event_type":"gift","date":"2019-04-14T03:47:13Z","store_number":"4","item_number":"3","value":"4","cashier":"Eve"}"#;
    let records: [&[u8]; 5] = [b"hello", good.as_bytes(), b"\xff\xfe", numbers.as_bytes(), unknown.as_bytes()];
    fixture.send_raw(records.iter().map(|payload| (b"4-3".as_slice(), *payload)));
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 6)]);
    let errors = fixture.error_records();
    let payloads: Vec<_> = errors.iter().map(|record| record.payload.clone()).collect();
    assert_eq!(
        payloads,
        [
            json!({"raw": "hello", "error": "the record is not a stock event: expected value at line 1 column 1"}),
            json!({"raw": "\u{fffd}\u{fffd}", "raw_base64": "//4=", "error": "the record is not a stock event: expected value at line 1 column 1"}),
            json!({"transaction_id": "00000000-0000-0000-0000-000000000003", "event_type": "gift", "date": "2019-04-14T03:47:13Z",
                   "store_number": "4", "item_number": "3", "value": "4", "cashier": "Eve",
                   "error": "event_type: \"gift\" is not known (one of: incoming, sale)"}),
        ]
    );
    let places: Vec<_> = errors.iter().map(|record| record.header("__connect.errors.offset").to_owned()).collect();
    assert_eq!(places, ["0", "2", "4"]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_whose_records_are_in_several_partitions_are_counted_once_all_the_same() {
    // the clock tries early sales again and again, but gives none up while the test runs
    let fixture = Fixture::new(4, &[("STOCK_BATCH_SIZE", "20"), ("KAFKA_EVENT_RETRIES", "30")]).await;
    let services = [fixture.start(), fixture.start()];
    // the keys say nothing of the card: several workers write each card at once, new cards too; the
    // sales of items 1 and 4 are sent before their stock
    let events: Vec<_> = (0..2_000)
        .map(|number| {
            event(number, if number % 3 == 2 { Sale } else { Incoming }, (number / 500 * 3 + number % 3) as i64 / 2, 1)
        })
        .collect();
    let records: Vec<_> = events.iter().map(|event| (event.transaction_id.to_string(), event.to_json())).collect();
    fixture.send_raw(records.iter().map(|(key, payload)| (key.as_bytes(), payload.as_bytes())));
    // and each a second time, to another partition
    fixture.send_raw(records.iter().map(|(_, payload)| (payload.as_bytes(), payload.as_bytes())));
    fixture.until_read().await;
    fixture.until("one sale waits", async || fixture.count("waiting_sales").await == 1).await;
    fixture.until_read().await;

    // item 2 has 167 sales and 166 pieces; all other sales have their stock
    let waiting: i64 = sqlx::query_scalar("SELECT item_number FROM waiting_sales")
        .fetch_one(&fixture.pool)
        .await
        .expect("the sale that waits");
    assert_eq!(waiting, 2);
    assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
    assert_eq!(fixture.count("transactions").await, 1_999);
    assert_eq!(fixture.items().await, [(4, 0, 334), (4, 1, 1), (4, 2, 0), (4, 3, 333), (4, 4, 0), (4, 5, 1)]);
    for service in services {
        service.stop().await.expect("a clean stop");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_a_sale_is_a_duplicate_also_when_it_would_not_fit_any_more() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 5), event(2, Sale, 3, 5)]);
    fixture.until_read().await;
    // alone in its batch: nothing else says that ids are known
    fixture.send(&[event(2, Sale, 3, 5)]);
    fixture.until_read().await;
    assert_eq!(fixture.count("waiting_sales").await, 0);
    fixture.send(&[event(3, Incoming, 3, 7)]);
    fixture.until_read().await;
    assert_eq!((fixture.items().await, fixture.count("transactions").await), (vec![(4, 3, 7)], 3));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_record_that_is_no_event_is_refused_by_its_beginning_and_holds_up_no_other_refusal() {
    let fixture = Fixture::new(1, &[]).await;
    let service = fixture.start();
    let noise = vec![0xff; 900_000];
    let long = format!(r#"{{"transaction_id":"{}"}}"#, "x".repeat(900_000));
    let records: [&[u8]; 3] = [&noise, long.as_bytes(), b"short"];
    fixture.send_raw(records.iter().map(|payload| (b"4-3".as_slice(), *payload)));
    fixture.until_read().await;
    let raw: Vec<_> = fixture.error_records().iter().map(|record| record.payload["raw_bytes"].clone()).collect();
    assert_eq!(raw, [json!(900_000), json!(long.len()), json!(null)]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_and_the_last_date_are_the_same_when_they_are_read_back_from_the_tables() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    let first = Timestamp::parse(b"0001-01-01T00:00:00+23:59").expect("a date");
    let dated = |date, event| StockEvent { date, ..event };
    let events = [
        dated(first, event(1, Incoming, 3, 1)),
        dated(Timestamp::LAST, event(2, Incoming, 3, 1)),
        dated(first, event(3, Sale, 9, 1)),
        dated(Timestamp::LAST, event(4, Sale, 9, 1)),
    ];
    // year 0 in UTC is written as year 1 with an offset
    let payload = |event: &StockEvent| event.to_json().replace("0000-12-31T00:01:00Z", "0001-01-01T00:00:00+23:59");
    let payloads: Vec<_> = events.iter().map(payload).collect();
    let send = || fixture.send_raw(payloads.iter().map(|payload| (b"4-3".as_slice(), payload.as_bytes())));
    send();
    fixture.until_read().await;
    // read back from both tables: one microsecond off would be a conflict
    send();
    fixture.until_read().await;
    assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
    for table in ["transactions", "waiting_sales"] {
        let sql = format!("SELECT (timestamp AT TIME ZONE 'UTC')::text FROM {table} ORDER BY transaction_id");
        let dates: Vec<String> = sqlx::query_scalar(&sql).fetch_all(&fixture.pool).await.expect("dates");
        assert_eq!(dates, ["0001-12-31 00:01:00 BC", "9999-12-31 23:59:59.999999"], "{table}");
    }
    service.stop().await.expect("a clean stop");
}

async fn execute(fixture: &Fixture, sql: &str) {
    sqlx::raw_sql(sql).execute(&fixture.pool).await.expect("executed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_goods_is_a_duplicate_also_when_the_amount_is_at_its_limit() {
    let fixture = Fixture::new(1, &[]).await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 5)]);
    fixture.until_read().await;
    service.stop().await.expect("a clean stop");
    execute(&fixture, "UPDATE items SET amount = 9223372036854775807").await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 5)]);
    fixture.until_read().await;
    assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
    fixture.send(&[event(2, Incoming, 3, 5)]);
    fixture.until_read().await;
    let errors: Vec<_> = fixture.error_records().iter().map(|record| record.payload["error"].clone()).collect();
    assert_eq!(errors, ["4-3 stock amount would exceed 9223372036854775807!"]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_event_can_have_written_stops_the_service() {
    let fixture = Fixture::new(1, &[]).await;
    let waiting = "INSERT INTO waiting_sales (transaction_id, timestamp, store_number, item_number, amount,
                                              next_try_at, topic, partition, record_offset, payload)
                   VALUES (gen_random_uuid(), now(), 4, 3, 4294967296, now() + interval '1 hour', 't', 0, 0, '')";
    execute(&fixture, waiting).await;
    fixture.send(&[event(1, Incoming, 3, 5)]);
    let error = format!("{:#}", fixture.start().end().await.expect_err("it must stop"));
    assert!(error.contains("no event has the amount 4294967296"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_cards_go_beyond_32_bits_and_when_they_are_used_up_no_event_is_blamed() {
    let fixture = Fixture::new(1, &[]).await;
    execute(&fixture, "SELECT setval('items_id_seq', 2147483647)").await;
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 5), event(2, Incoming, 4, 5)]);
    fixture.until_read().await;
    assert_eq!(fixture.items().await, [(4, 3, 5), (4, 4, 5)]);
    service.stop().await.expect("a clean stop");

    execute(&fixture, "SELECT setval('items_id_seq', 9223372036854775807)").await;
    let service = fixture.start();
    fixture.send(&[event(3, Incoming, 5, 5)]);
    let error = format!("{:#}", service.end().await.expect_err("it must stop"));
    assert!(error.contains("items_id_seq"), "{error}");
    assert!(fixture.error_records().is_empty(), "{:?}", fixture.error_records());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_create_the_same_cards_in_opposite_orders_do_not_wait_for_each_other() {
    let fixture = Fixture::new(4, &[("STOCK_TRANSACTIONS", "4")]).await;
    let mut records = Vec::new();
    for round in 0..20 {
        for number in 0..400 {
            let item = if round % 2 == 0 { number } else { 399 - number };
            let new = event(round * 400 + number, Incoming, (round / 4 * 1_000 + item) as i64, 1);
            records.push((round.to_string(), new.to_json()));
        }
    }
    let service = fixture.start();
    fixture.send_raw(records.iter().map(|(key, payload)| (key.as_bytes(), payload.as_bytes())));
    fixture.until_read().await;
    let amounts: i64 = fixture.items().await.iter().map(|(_, _, amount)| amount).sum();
    assert_eq!(amounts, 8_000);
    service.stop().await.expect("a clean stop");
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&fixture.pool)
            .await
            .expect("a count");
    assert_eq!(deadlocks, 0);
}
