//! What happens to records that cannot be applied, and to their neighbours.

use std::time::Duration;

use crate::fixture::{Fixture, Refused};

fn refused(offset: i64, class: &str, error: &str) -> Refused {
    Refused { partition: 0, offset, class: class.into(), error: error.into() }
}

fn not_applicable(offset: i64) -> Refused {
    let why = "the record cannot be applied: division by zero";
    refused(offset, "NotApplicable", why)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_record_in_a_large_batch_is_refused_alone_and_its_neighbours_are_applied_once_and_in_order() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, (0..1_000).map(|number| if number == 617 { "0".to_owned() } else { (number + 1).to_string() }));
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!(fixture.applied(0).await, (0..617).chain(618..1_000).collect::<Vec<_>>());
    assert_eq!(fixture.refused(), [not_applicable(617)]);
    let largest = fixture.controls.calls.lock().expect("no panic").iter().map(|(_, offsets)| offsets.len()).max();
    assert!(largest > Some(100), "the batches were small: {largest:?}");
    // halves, not one by one
    assert!(fixture.controls.committed.lock().expect("no panic").len() < 60);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_every_record_is_bad_is_refused_record_by_record() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, ["0"; 70]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!(fixture.refused(), (0..70).map(not_applicable).collect::<Vec<_>>());
    assert_eq!((fixture.applied(0).await, fixture.next_offset(0).await), (vec![], 70));
    fixture.send(0, ["5"]);
    fixture.until_read().await;
    assert_eq!(fixture.applied(0).await, [70]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_beyond_a_limit_of_the_database_is_refused_alone_too() {
    let fixture = Fixture::new(1).await;
    // what does not compress to a third of a page does not fit an index
    let mut seed = 1_u64;
    let digit = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (seed >> 33) as u8 % 90)
    });
    let long = format!("long {}", digit.take(20_000).collect::<String>());
    fixture.send(0, ["1", &long, "3"]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!(fixture.applied(0).await, [0, 2]);
    let refused = fixture.refused();
    assert_eq!((refused.len(), refused[0].offset, refused[0].class.as_str()), (1, 1, "NotApplicable"));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_the_order_of_their_records_whatever_refuses_them() {
    let fixture = Fixture::new(1).await;
    let words = ["refused", "x", "0", "y", "1", "refused", "z", "0", "v", "w", "refused"];
    fixture.send(0, words);
    let service = fixture.start().await;
    fixture.until_read().await;
    let expected: Vec<_> = (0..)
        .zip(words)
        .filter(|(_, word)| *word != "1")
        .map(|(offset, word)| match word {
            "0" => not_applicable(offset),
            "refused" => refused(offset, "InsufficientStock", "the rules forbid it"),
            word => refused(offset, "InvalidEvent", &format!("{word} is no number")),
        })
        .collect();
    assert_eq!(fixture.refused(), expected);
    // and in one batch, in which nothing fails
    fixture.send(0, ["refused", "x", "refused", "y", "2"]);
    fixture.until_read().await;
    let order: Vec<_> = fixture.refused().iter().skip(expected.len()).map(|refused| refused.offset).collect();
    assert_eq!((order, fixture.applied(0).await), (vec![11, 12, 13, 14], vec![4, 15]));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_reason_holds_a_nul_character_is_refused_and_holds_up_nothing() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, ["1", "a\0b", "3"]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!(fixture.applied(0).await, [0, 2]);
    let found = fixture.refused();
    assert_eq!((found.len(), found[0].offset, found[0].class.as_str()), (1, 1, "InvalidEvent"));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_passes_is_retried_until_the_batch_is_applied_once() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, ["1", "transient 4", "3"]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!((fixture.applied(0).await, fixture.refused()), (vec![0, 1, 2], vec![]));
    // not counted as attempts, which are for what was assumed
    assert_eq!(fixture.controls.attempts(1), [0; 5]);
    assert!(fixture.health.complaints().is_empty(), "{:?}", fixture.health.complaints());
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_assumed_wrongly_is_applied_again_at_once_with_the_attempts_number() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, ["1", "stale 7", "3"]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!((fixture.applied(0).await, fixture.refused()), (vec![0, 1, 2], vec![]));
    assert_eq!(fixture.controls.attempts(1), [0, 1, 2, 3, 4, 5, 6, 7]);
    // the next batch begins again with 0
    fixture.send(0, ["stale 1"]);
    fixture.until_read().await;
    assert_eq!(fixture.controls.attempts(3), [0, 1]);
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_again_and_again_is_applied_in_the_end() {
    let fixture = Fixture::new(1).await;
    fixture.send(0, ["stale 13"]);
    let service = fixture.start().await;
    fixture.until_read().await;
    // 11 at once; then it is read again, after a pause
    assert_eq!((fixture.applied(0).await, fixture.controls.attempts(0)), (vec![0], (0..11).chain(0..3).collect()));
    service.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_end_in_time_is_applied_in_smaller_parts_and_refuses_nothing() {
    let mut fixture = Fixture::new(1).await;
    fixture.settings.transaction_timeout = Duration::from_millis(600);
    fixture.send(0, ["slow 20"; 100]);
    let service = fixture.start().await;
    fixture.until_read().await;
    assert_eq!((fixture.applied(0).await, fixture.refused()), ((0..100).collect(), vec![]));
    let largest = fixture.controls.calls.lock().expect("no panic").iter().map(|(_, offsets)| offsets.len()).max();
    assert!(largest > Some(30), "all of it would have fitted: {largest:?}");
    service.stop().await.expect("a clean stop");
}
