//! The journal: where its rows came from, and how they are looked up.

mod fixture;

use events::stock::Movement::{Incoming, Sale};
use fixture::{Fixture, event};
use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

/// Id, partition and offset of every row, by id.
async fn origins(fixture: &Fixture) -> Vec<(u128, Option<i32>, Option<i64>)> {
    let sql = "SELECT transaction_id, partition, record_offset FROM transactions ORDER BY 1";
    let rows = sqlx::query(sql).fetch_all(&fixture.pool).await.expect("rows");
    rows.iter().map(|row| (row.get::<Uuid, _>(0).as_u128(), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_of_the_journal_records_which_record_it_came_from_and_when_that_was_written() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let began = OffsetDateTime::now_utc();
    let service = fixture.start();
    fixture.send(&[
        event(1, Incoming, 3, 10),
        event(2, Sale, 3, 1),
        event(3, Sale, 5, 7),
        event(4, Sale, 6, 8),
        // in one batch with its stock, or not
        event(5, Incoming, 5, 7),
    ]);
    fixture.until_read().await;
    service.stop().await.expect("a clean stop");
    // the other one waits in Postgres meanwhile; the first ids are repeated to a process that has not seen them
    let service = fixture.start();
    fixture.send(&[event(1, Incoming, 3, 10), event(2, Sale, 3, 1), event(6, Incoming, 6, 8)]);
    fixture.until_read().await;
    let row = |id: u128, offset: i64| (id, Some(0), Some(offset));
    assert_eq!(origins(&fixture).await, [row(1, 0), row(2, 1), row(3, 2), row(4, 3), row(5, 4), row(6, 7)]);
    let sql = "SELECT min(recorded_at), max(recorded_at), count(recorded_at) FROM transactions";
    let row = sqlx::query(sql).fetch_one(&fixture.pool).await.expect("times");
    let (first, last): (OffsetDateTime, OffsetDateTime) = (row.get(0), row.get(1));
    // Kafka's timestamps are in milliseconds
    assert!(began - time::Duration::milliseconds(1) <= first && last <= OffsetDateTime::now_utc(), "{first} to {last}");
    assert_eq!(row.get::<i64, _>(2), 6);
    assert!(fixture.error_records().is_empty());
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_were_empty_at_the_first_batch_are_never_read_as_a_whole() {
    let fixture = Fixture::new(1, &[("STOCK_RETRY_MS", "600000")]).await;
    let service = fixture.start();
    for round in 0..20_u128 {
        let new = (0..200).map(|number| event(1 + round * 200 + number, Incoming, number as i64, 1));
        // repeats of the round before, and a sale that waits
        let repeated =
            (0..5).map(|number| event(1 + round.saturating_sub(1) * 200 + number, Incoming, number as i64, 1));
        let waits = event(1_000_000 + round, Sale, 1_000, 1);
        fixture.send(&new.chain(repeated).chain([waits]).collect::<Vec<_>>());
        fixture.until_read().await;
    }
    // a backend reports what it did when it has been idle for a moment, and when it ends
    service.stop().await.expect("a clean stop");
    let scans = async |column: &str| -> i64 {
        let sql = format!(
            "SELECT sum(coalesce({column}, 0))::bigint FROM pg_stat_user_tables WHERE relname IN ('transactions', 'items')"
        );
        sqlx::query_scalar(&sql).fetch_one(&fixture.pool).await.expect("statistics")
    };
    fixture.until("the statistics are there", async || scans("idx_scan").await > 0).await;
    assert_eq!(scans("seq_tup_read").await, 0);
    assert_eq!((fixture.count("transactions").await, fixture.count("waiting_sales").await), (4_000, 20));
}
