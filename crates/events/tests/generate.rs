//! Generated files: the same for ever, in the shape that was asked for, and true to their outcomes.

use std::collections::{BTreeMap, HashMap};

use events::{
    Header, Row, RowReader,
    generate::{ExpectedOutcome, Generator, Shape},
    stock::{Card, Movement, StockEvent},
};
use uuid::Uuid;

/// All outcomes often, on few cards.
const LIVELY: Shape =
    Shape { stores: 3, items: 20, sales: 0.6, early: 0.01, hopeless: 0.05, duplicates: 0.1, conflicts: 0.1, bad: 0.15 };

fn rows(seed: u64, shape: Shape, count: usize) -> (Vec<(ExpectedOutcome, String)>, Generator) {
    let mut generator = Generator::new(seed, shape).unwrap();
    let rows = (0..count).map(|_| {
        let mut line = Vec::new();
        let outcome = generator.write_row(&mut line);
        (outcome, String::from_utf8(line).unwrap().strip_suffix('\n').unwrap().to_owned())
    });
    (rows.collect(), generator)
}

fn reader() -> RowReader {
    RowReader::new(Header::read(Generator::header_line().trim_end().as_bytes()).unwrap())
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_ever() {
    let (rows, _) = rows(1, LIVELY, 16);
    let lines: Vec<_> = rows.iter().map(|(outcome, line)| format!("{line} ({outcome:?})")).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    3f391c8a-76d9-40bb-ad49-e4067617136b,incoming,2026-01-01T00:00:00Z,3,7,314 (Incoming)
    bc9e9deb-3c2a-4940-9b0a-d7b5e85080c2,incoming,2026-01-01T00:00:00Z,1,9,392 (Incoming)
    b3f8ea13-a62a-4f3d-9ee5-1e1069efcbc5,sale,2026-01-01T00:00:01Z,1,9,7 (Sale)
    bc9e9deb-3c2a-4940-9b0a-d7b5e85080c2,incoming,2026-01-01T00:00:00Z,1,9,392 (Duplicate)
    1f8de5fe-7f5c-4993-b812-d58d96162ccc,incoming,2026-01-01T00:00:02Z,2,1,0 (Bad)
    988b0405-4222-4240-b45e-7c02474035f4,sale,2026-01-01T00:00:02Z,3,7,13 (Sale)
    66b47428-600a-4e41-972e-27201d3bf49b,sale,2026-01-01T00:00:02Z,1,9,26 (Sale)
    07078460-663b-4286-ae2b-d53e2c3aa97d,sale,2026-01-01T00:00:03Z,3,7,25 (Sale)
    31e2b915-ab45-4581-9b24-966c6320c5a7,incoming,2026-01-01T00:00:03Z,2,173 (Bad)
    66b47428-600a-4e41-972e-27201d3bf49b,sale,2026-01-01T00:00:02Z,1,9,26 (Duplicate)
    3f391c8a-76d9-40bb-ad49-e4067617136b,incoming,2026-01-01T00:00:00Z,3,7,314 (Duplicate)
    8f4d25ab-2434-4fe0-b820-39499d7e9d32,sale,2026-01-01T00:00:06Z,1,30,36 (Hopeless)
    10a0a217-e428-4e99-966c-1d396f76a384,incoming,2026-01-01T00:00:06Z,2,19,479 (Incoming)
    bc9e9deb-3c2a-4940-9b0a-d7b5e85080c2,incoming,2026-01-01T00:00:00Z,1,9,392 (Duplicate)
    e3fe8835-db90-40e4-95a4-533a54bc9a1a,sale,2026-01-01T00:00:08Z,1,9,17 (Sale)
    ffed2197-7308-4bfa-9a88-5149523aec74,sale,2026-01-01T00:00:09Z,1,9,29 (Sale)
    ");
}

#[test]
fn another_seed_gives_other_rows() {
    let (one, _) = rows(1, LIVELY, 1000);
    let (other, _) = rows(2, LIVELY, 1000);
    assert!(one.iter().zip(&other).all(|(one, other)| one.1 != other.1));
}

#[test]
fn the_shares_are_met() {
    let shape = Shape { early: 0.02, hopeless: 0.01, duplicates: 0.03, conflicts: 0.04, bad: 0.05, ..Shape::default() };
    let count = 200_000;
    let mut counts = BTreeMap::new();
    for (outcome, _) in rows(7, shape, count).0 {
        *counts.entry(outcome).or_insert(0_u32) += 1;
    }
    let plain = 0.85;
    let expected = BTreeMap::from([
        (ExpectedOutcome::Incoming, plain * 0.5),
        (ExpectedOutcome::Sale, plain * 0.5),
        (ExpectedOutcome::Early, 0.02),
        (ExpectedOutcome::Hopeless, 0.01),
        (ExpectedOutcome::Duplicate, 0.03),
        (ExpectedOutcome::Conflict, 0.04),
        (ExpectedOutcome::Bad, 0.05),
    ]);
    for (outcome, share) in expected {
        let met = f64::from(counts[&outcome]) / count as f64;
        assert!((met - share).abs() < 0.003, "{outcome:?}: {met} instead of {share}");
    }
}

#[test]
fn bad_rows_are_refused_and_all_others_accepted() {
    let (reader, mut row) = (reader(), Row::default());
    for (outcome, line) in rows(3, LIVELY, 20_000).0 {
        assert_eq!(
            reader.read(line.as_bytes(), &mut row).is_err(),
            outcome == ExpectedOutcome::Bad,
            "{outcome:?}: {line}"
        );
    }
}

#[test]
fn each_row_meets_the_fate_it_was_made_for() {
    for seed in 0..20 {
        let (rows, generator) = rows(seed, LIVELY, 20_000);
        let mut books = Books::default();
        let (reader, mut row) = (reader(), Row::default());
        for (outcome, line) in rows.iter().filter(|(outcome, _)| *outcome != ExpectedOutcome::Bad) {
            reader.read(line.as_bytes(), &mut row).unwrap();
            let event = StockEvent::decode(&row.payload).unwrap();
            let met = books.apply(event);
            let early_or_hopeless = matches!(outcome, ExpectedOutcome::Early | ExpectedOutcome::Hopeless);
            assert!(
                met == *outcome || early_or_hopeless && met == ExpectedOutcome::Early,
                "{outcome:?}, but {met:?}: {line}"
            );
        }
        let hopeless = rows.iter().filter(|(outcome, _)| *outcome == ExpectedOutcome::Hopeless).count();
        assert_eq!(books.waiting.values().map(Vec::len).sum::<usize>(), hopeless + generator.uncovered());
    }
}

#[test]
fn memory_is_bounded_and_early_sales_are_covered_when_little_comes_in() {
    let shape = Shape { sales: 0.99, early: 0.3, ..Shape::default() };
    let (rows, generator) = rows(5, shape, 100_000);
    let early = rows.iter().filter(|(outcome, _)| *outcome == ExpectedOutcome::Early).count();
    assert!(generator.uncovered() <= 4096 && early > 4096, "{early} early, {} uncovered", generator.uncovered());
}

#[test]
fn a_shape_that_is_not_possible_is_refused_with_the_reason() {
    let refused = |shape| Generator::new(1, shape).unwrap_err().to_string();
    let shape = Shape::default();
    let errors = [
        refused(Shape { bad: 1.5, ..shape }),
        refused(Shape { bad: 0.5, early: 0.75, duplicates: 0.0, hopeless: 0.0, conflicts: 0.0, ..shape }),
        refused(Shape { stores: 0, ..shape }),
        refused(Shape { stores: u64::MAX, items: 2, ..shape }),
    ];
    insta::assert_snapshot!(errors.join("\n"), @"
    the share of bad is 1.5, expected 0 to 1
    the shares of early, hopeless, duplicates, conflicts and bad add up to 1.25, which is more than 1
    0 stores x 2000 items: expected 1 to 100000000 cards
    18446744073709551615 stores x 2 items: expected 1 to 100000000 cards
    ");
}

/// The rules of stock in their plainest form, without a clock: what cannot be sold waits.
#[derive(Default)]
struct Books {
    known: HashMap<Uuid, StockEvent>,
    amounts: HashMap<Card, i64>,
    waiting: HashMap<Card, Vec<i64>>,
}

impl Books {
    fn apply(&mut self, event: StockEvent) -> ExpectedOutcome {
        match self.known.get(&event.transaction_id) {
            Some(known) if *known == event => return ExpectedOutcome::Duplicate,
            Some(_) => return ExpectedOutcome::Conflict,
            None => self.known.insert(event.transaction_id, event),
        };
        let amount = self.amounts.entry(event.card).or_default();
        let waiting = self.waiting.entry(event.card).or_default();
        let value = i64::from(event.value);
        match event.movement {
            Movement::Sale if value > *amount => {
                waiting.push(value);
                ExpectedOutcome::Early
            }
            Movement::Sale => {
                *amount -= value;
                ExpectedOutcome::Sale
            }
            Movement::Incoming => {
                *amount += value;
                waiting.retain(|sale| {
                    let fits = sale <= amount;
                    *amount -= if fits { *sale } else { 0 };
                    !fits
                });
                ExpectedOutcome::Incoming
            }
        }
    }
}
