//! The rules against an oracle that is slow and obvious: random histories with repeats, conflicts,
//! early sales, unknown cards, overflow and time passing. Over the run, each of these must occur.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use events::{
    RefusalClass, Timestamp,
    stock::{Card, Movement, StockEvent},
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};
use stock::rules::{Decision, Ledger, Released, Retry, RetryPolicy};
use uuid::Uuid;

/// What happens: an event arrives, one that arrived before comes again, or the clock tries every
/// waiting sale.
#[derive(Debug, Clone)]
enum Step {
    Arrives(StockEvent),
    Repeats(Index, Option<Field>),
    ClockTicks,
}

/// Where a repeat differs from the event that has its id.
#[derive(Debug, Clone, Copy)]
enum Field {
    Movement,
    Date,
    Store,
    Item,
    Value,
}

const FIELDS: [Field; 5] = [Field::Movement, Field::Date, Field::Store, Field::Item, Field::Value];

impl Field {
    fn change(self, event: StockEvent) -> StockEvent {
        let (movement, card) = (event.movement, event.card);
        match self {
            Field::Movement if movement == Movement::Sale => StockEvent { movement: Movement::Incoming, ..event },
            Field::Movement => StockEvent { movement: Movement::Sale, ..event },
            Field::Date => StockEvent { date: Timestamp(event.date.0 + 1), ..event },
            Field::Store => StockEvent { card: Card { store: card.store + 1, ..card }, ..event },
            Field::Item => StockEvent { card: Card { item: card.item + 1, ..card }, ..event },
            Field::Value => StockEvent { value: event.value % 7 + 1, ..event },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    // few ids, dates, cards and values, so that conflicts and near misses are common
    let event = (0..30_u128, any::<bool>(), 0..3_i64, 0..3_i64, 0..2_i64, 1..8_i32, prop::bool::weighted(0.02))
        .prop_map(|(id, incoming, date, store, item, value, huge)| StockEvent {
            transaction_id: Uuid::from_u128(id),
            movement: if incoming { Movement::Incoming } else { Movement::Sale },
            date: Timestamp(date),
            card: Card { store, item },
            value: if huge { i32::MAX } else { value },
        });
    let field = prop::option::of(prop::sample::select(&FIELDS));
    let repeat = (any::<Index>(), field).prop_map(|(which, field)| Step::Repeats(which, field));
    prop_oneof![10 => event.prop_map(Step::Arrives), 2 => repeat, 1 => Just(Step::ClockTicks)]
}

/// How often each case occurred, over all histories.
#[derive(Debug, Default)]
struct Occurred(BTreeMap<String, u32>);

impl Occurred {
    fn count(&mut self, case: impl Into<String>) {
        *self.0.entry(case.into()).or_default() += 1;
    }
}

/// The fields in which two events of one id differ: "date", "store and value".
fn difference(one: &StockEvent, other: &StockEvent) -> String {
    let differ = |field: &Field| match field {
        Field::Movement => one.movement != other.movement,
        Field::Date => one.date != other.date,
        Field::Store => one.card.store != other.card.store,
        Field::Item => one.card.item != other.card.item,
        Field::Value => one.value != other.value,
    };
    let fields = FIELDS.iter().filter(|field| differ(field)).map(|field| format!("{field:?}").to_lowercase());
    fields.collect::<Vec<_>>().join(" and ")
}

/// The oracle keeps the whole history and computes every amount again from the journal each time.
#[derive(Debug, Default)]
struct Oracle {
    start: BTreeMap<Card, i64>,
    journal: Vec<StockEvent>,
    waiting: Vec<(StockEvent, u32)>,
    refused: Vec<(Uuid, String)>,
    given_up: Vec<Uuid>,
    duplicates: usize,
}

impl Oracle {
    fn amount(&self, card: Card) -> Option<i128> {
        let mut amount = self.start.get(&card).map(|amount| i128::from(*amount));
        for event in self.journal.iter().filter(|event| event.card == card) {
            let sign = if event.movement == Movement::Incoming { 1 } else { -1 };
            amount = Some(amount.unwrap_or(0) + sign * i128::from(event.value));
        }
        amount
    }

    fn fits(&self, sale: &StockEvent) -> bool {
        self.amount(sale.card).is_some_and(|amount| amount >= i128::from(sale.value))
    }

    fn arrives(&mut self, event: StockEvent, occurred: &mut Occurred) {
        let applied = self.journal.iter().map(|event| (event, "applied"));
        let mut known = applied.chain(self.waiting.iter().map(|(sale, _)| (sale, "waiting")));
        if let Some((known, how)) = known.find(|(known, _)| known.transaction_id == event.transaction_id) {
            if *known == event {
                occurred.count(format!("duplicate of one {how}"));
                self.duplicates += 1;
            } else {
                occurred.count(format!("conflict with one {how}, by {}", difference(known, &event)));
                self.refused.push((event.transaction_id, "conflict".into()));
            }
            return;
        }
        if self.given_up.contains(&event.transaction_id) {
            occurred.count("an id that was given up comes again");
        }
        match event.movement {
            Movement::Incoming => {
                if self.amount(event.card).unwrap_or(0) + i128::from(event.value) > i128::from(i64::MAX) {
                    occurred.count("overflow");
                    self.refused.push((event.transaction_id, "overflow".into()));
                    return;
                }
                let new = self.amount(event.card).is_none();
                occurred.count(if new { "incoming on a new card" } else { "incoming on a card" });
                self.journal.push(event);
                let (mut released, mut passed) = (0, false);
                for (sale, tries) in std::mem::take(&mut self.waiting) {
                    if sale.card == event.card && self.fits(&sale) {
                        self.journal.push(sale);
                        released += 1;
                        if passed {
                            occurred.count("a waiting sale passes a larger one");
                        }
                    } else {
                        passed |= sale.card == event.card;
                        self.waiting.push((sale, tries));
                    }
                }
                match released {
                    0 => {}
                    1 => occurred.count("one waiting sale is released"),
                    _ => occurred.count("several waiting sales are released"),
                }
            }
            Movement::Sale if self.fits(&event) => {
                occurred.count("sale");
                self.journal.push(event);
            }
            Movement::Sale => {
                let known = self.amount(event.card).is_some();
                occurred.count(if known { "sale beyond the stock" } else { "sale on an unknown card" });
                self.waiting.push((event, 0));
            }
        }
    }

    fn clock_ticks(&mut self, tries_at_most: u32, occurred: &mut Occurred) {
        for (sale, tries) in std::mem::take(&mut self.waiting) {
            if self.fits(&sale) {
                self.journal.push(sale);
            } else if tries + 1 >= tries_at_most {
                let reason = match self.amount(sale.card) {
                    None => {
                        occurred.count("given up: unknown card");
                        format!("{} does not exist!", sale.card)
                    }
                    Some(amount) => {
                        occurred.count("given up: beyond the stock");
                        format!("{} stock amount would be less than 0: {}!", sale.card, amount - i128::from(sale.value))
                    }
                };
                self.refused.push((sale.transaction_id, reason));
                self.given_up.push(sale.transaction_id);
            } else {
                occurred.count("tried and waits on");
                self.waiting.push((sale, tries + 1));
            }
        }
    }
}

/// The rules as the service uses them.
struct Subject {
    ledger: Ledger,
    retry_policy: RetryPolicy,
    journal: Vec<StockEvent>,
    waiting: Vec<(StockEvent, u32)>,
    refused: Vec<(Uuid, String)>,
    duplicates: usize,
}

impl Subject {
    fn arrives(&mut self, event: StockEvent) {
        let mut released = Vec::new();
        match self.ledger.decide(&event, &mut released) {
            Decision::Applied { amount, .. } => {
                assert!(amount >= 0);
                self.journal.push(event);
            }
            Decision::Waits => self.waiting.push((event, 0)),
            Decision::Duplicate => self.duplicates += 1,
            Decision::Refused(refusal) => {
                let why = match refusal.class {
                    RefusalClass::StockOverflow => "overflow",
                    RefusalClass::ConflictingTransaction => "conflict",
                    other => panic!("{other} is not decided when an event arrives"),
                };
                self.refused.push((event.transaction_id, why.into()));
            }
        }
        for Released { sale, amount } in released {
            assert!(amount >= 0);
            self.waiting.retain(|(waiting, _)| waiting.transaction_id != sale.transaction_id);
            self.journal.push(sale);
        }
    }

    fn clock_ticks(&mut self) {
        for (sale, tries) in std::mem::take(&mut self.waiting) {
            match self.retry_policy.retry(&sale, self.ledger.amount(sale.card), tries) {
                Retry::Applied { .. } => unreachable!("stock that comes in frees every sale that fits"),
                Retry::Waits(pause) => {
                    assert_eq!(pause, self.retry_policy.first_pause * 2_u32.pow(tries + 1));
                    self.waiting.push((sale, tries + 1));
                }
                Retry::GivenUp(refusal) => {
                    assert!(self.ledger.give_up(&sale));
                    self.refused.push((sale.transaction_id, refusal.error));
                }
            }
        }
    }

    /// A batch ends: all but amounts is forgotten, and read again from where it was written.
    fn batch_ends(&mut self) {
        let mut ledger = Ledger::with_room(8);
        for (card, amount) in self.ledger.amounts() {
            ledger.set_amount(card, amount);
        }
        assert_eq!(ledger.changed().count(), 0);
        self.ledger = ledger;
        for event in &self.journal {
            self.ledger.set_applied(event);
        }
        for (sale, _) in &self.waiting {
            self.ledger.set_waiting(*sale);
        }
    }
}

/// A history, how often the clock tries a sale, and whether a card begins nearly full.
type History = (Vec<(Step, bool)>, u32, bool);

/// Runs a history through both, and compares all there is after each step.
fn compare((steps, tries, nearly_full): History, occurred: &mut Occurred) -> Result<(), TestCaseError> {
    let retry_policy = RetryPolicy { tries, first_pause: Duration::from_millis(10) };
    let mut oracle = Oracle::default();
    let mut subject = Subject {
        ledger: Ledger::default(),
        retry_policy,
        journal: Vec::new(),
        waiting: Vec::new(),
        refused: Vec::new(),
        duplicates: 0,
    };
    if nearly_full {
        let card = Card { store: 0, item: 0 };
        oracle.start.insert(card, i64::MAX - 5);
        subject.ledger.set_amount(card, i64::MAX - 5);
    }
    let mut arrived = Vec::new();
    for (step, batch_ends) in steps {
        let event = match step {
            Step::Arrives(event) => Some(event),
            Step::Repeats(..) if arrived.is_empty() => continue,
            Step::Repeats(which, field) => {
                let event = *which.get(&arrived);
                Some(field.map_or(event, |field| field.change(event)))
            }
            Step::ClockTicks => None,
        };
        match event {
            Some(event) => {
                arrived.push(event);
                oracle.arrives(event, occurred);
                subject.arrives(event);
            }
            None => {
                oracle.clock_ticks(tries, occurred);
                subject.clock_ticks();
            }
        }
        if batch_ends {
            subject.batch_ends();
        }
        prop_assert_eq!(&subject.journal, &oracle.journal);
        prop_assert_eq!(&subject.waiting, &oracle.waiting);
        prop_assert_eq!(&subject.refused, &oracle.refused);
        prop_assert_eq!(subject.duplicates, oracle.duplicates);
        let amounts: BTreeMap<Card, i128> =
            subject.ledger.amounts().map(|(card, amount)| (card, amount.into())).collect();
        for (card, amount) in &amounts {
            prop_assert_eq!(oracle.amount(*card), Some(*amount));
            prop_assert!(*amount >= 0);
        }
        let cards = oracle.journal.iter().map(|event| event.card).chain(oracle.start.keys().copied());
        prop_assert!(cards.into_iter().all(|card| amounts.contains_key(&card)));
    }
    Ok(())
}

#[test]
fn the_rules_do_what_the_oracle_does() {
    let config = ProptestConfig { cases: 4_000, source_file: Some(file!()), ..ProptestConfig::default() };
    let histories = (vec((step(), prop::bool::weighted(0.2)), 1..120), 0..4_u32, any::<bool>());
    let occurred = RefCell::new(Occurred::default());
    let compared =
        TestRunner::new(config).run(&histories, |history: History| compare(history, &mut occurred.borrow_mut()));
    compared.unwrap_or_else(|error| panic!("{error}"));

    let occurred = occurred.into_inner().0;
    let plain = [
        "incoming on a new card",
        "incoming on a card",
        "sale",
        "sale beyond the stock",
        "sale on an unknown card",
        "one waiting sale is released",
        "several waiting sales are released",
        "a waiting sale passes a larger one",
        "tried and waits on",
        "given up: unknown card",
        "given up: beyond the stock",
        "an id that was given up comes again",
        "overflow",
        "duplicate of one applied",
        "duplicate of one waiting",
    ];
    let conflicts = ["applied", "waiting"].into_iter().flat_map(|how| {
        ["movement", "date", "store", "item", "value"].map(|field| format!("conflict with one {how}, by {field}"))
    });
    for case in plain.into_iter().map(str::to_owned).chain(conflicts) {
        let times = occurred.get(&case).copied().unwrap_or(0);
        assert!(times > 100, "{case}: {times} times only, of {occurred:#?}");
    }
}
