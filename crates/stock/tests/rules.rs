//! The rules against an oracle that is slow and obvious: random histories with repeats, conflicts,
//! early sales, unknown cards, overflow and time passing.

use std::{collections::BTreeMap, time::Duration};

use events::{
    Timestamp,
    stock::{Card, Movement, StockEvent},
};
use proptest::{collection::vec, prelude::*};
use stock::rules::{Freed, Ledger, Patience, Retry, Verdict};
use uuid::Uuid;

/// What happens: an event arrives, or the clock tries every waiting sale.
#[derive(Debug, Clone)]
enum Step {
    Arrives(StockEvent),
    ClockTicks,
}

fn step() -> impl Strategy<Value = Step> {
    // few ids, cards and values, so that repeats, conflicts and near misses are common
    let event = (0..30_u128, any::<bool>(), 0..3_i64, 0..2_i64, 1..8_i32, prop::bool::weighted(0.02)).prop_map(
        |(id, incoming, store, item, value, huge)| StockEvent {
            transaction_id: Uuid::from_u128(id),
            movement: if incoming { Movement::Incoming } else { Movement::Sale },
            date: Timestamp(0),
            card: Card { store, item },
            value: if huge { i32::MAX } else { value },
        },
    );
    prop_oneof![12 => event.prop_map(Step::Arrives), 1 => Just(Step::ClockTicks)]
}

/// The oracle keeps the whole history and computes every amount anew from the journal each time.
#[derive(Debug, Default)]
struct Oracle {
    start: BTreeMap<Card, i64>,
    journal: Vec<StockEvent>,
    waiting: Vec<(StockEvent, u32)>,
    refused: Vec<(Uuid, String)>,
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

    fn arrives(&mut self, event: StockEvent) {
        let known = self.journal.iter().chain(self.waiting.iter().map(|(sale, _)| sale));
        if let Some(known) = known.into_iter().find(|known| known.transaction_id == event.transaction_id) {
            if *known == event {
                self.duplicates += 1;
            } else {
                self.refused.push((event.transaction_id, "conflict".into()));
            }
            return;
        }
        match event.movement {
            Movement::Incoming => {
                if self.amount(event.card).unwrap_or(0) + i128::from(event.value) > i128::from(i64::MAX) {
                    self.refused.push((event.transaction_id, "overflow".into()));
                    return;
                }
                self.journal.push(event);
                for (sale, tries) in std::mem::take(&mut self.waiting) {
                    if sale.card == event.card && self.fits(&sale) {
                        self.journal.push(sale);
                    } else {
                        self.waiting.push((sale, tries));
                    }
                }
            }
            Movement::Sale if self.fits(&event) => self.journal.push(event),
            Movement::Sale => self.waiting.push((event, 0)),
        }
    }

    fn clock_ticks(&mut self, tries_at_most: u32) {
        for (sale, tries) in std::mem::take(&mut self.waiting) {
            if self.fits(&sale) {
                self.journal.push(sale);
            } else if tries + 1 >= tries_at_most {
                let reason = match self.amount(sale.card) {
                    None => format!("{} does not exist!", sale.card),
                    Some(amount) => {
                        format!("{} stock amount would be less than 0: {}!", sale.card, amount - i128::from(sale.value))
                    }
                };
                self.refused.push((sale.transaction_id, reason));
            } else {
                self.waiting.push((sale, tries + 1));
            }
        }
    }
}

/// The rules as the service uses them.
struct Subject {
    ledger: Ledger,
    patience: Patience,
    journal: Vec<StockEvent>,
    waiting: Vec<(StockEvent, u32)>,
    refused: Vec<(Uuid, String)>,
    duplicates: usize,
}

impl Subject {
    fn arrives(&mut self, event: StockEvent) {
        let mut freed = Vec::new();
        match self.ledger.judge(&event, &mut freed) {
            Verdict::Applied { amount, .. } => {
                assert!(amount >= 0);
                self.journal.push(event);
            }
            Verdict::Waits => self.waiting.push((event, 0)),
            Verdict::Duplicate => self.duplicates += 1,
            Verdict::Refused(refusal) => {
                let why = if refusal.class == "StockOverflow" { "overflow" } else { "conflict" };
                self.refused.push((event.transaction_id, why.into()));
            }
        }
        for Freed { sale, amount } in freed {
            assert!(amount >= 0);
            self.waiting.retain(|(waiting, _)| waiting.transaction_id != sale.transaction_id);
            self.journal.push(sale);
        }
    }

    fn clock_ticks(&mut self) {
        for (sale, tries) in std::mem::take(&mut self.waiting) {
            match self.patience.retry(&sale, self.ledger.amount(sale.card), tries) {
                Retry::Applied { .. } => unreachable!("stock that comes in frees every sale that fits"),
                Retry::Waits(pause) => {
                    assert_eq!(pause, self.patience.first_pause * 2_u32.pow(tries + 1));
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
        self.ledger.settle();
        assert_eq!(self.ledger.changed().count(), 0);
        for event in &self.journal {
            self.ledger.set_applied(event);
        }
        for (sale, _) in &self.waiting {
            self.ledger.set_waiting(*sale);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_rules_do_what_the_oracle_does(
        steps in vec((step(), prop::bool::weighted(0.2)), 1..120),
        tries in 0..4_u32,
        nearly_full in any::<bool>(),
    ) {
        let patience = Patience { tries, first_pause: Duration::from_millis(10) };
        let mut oracle = Oracle::default();
        let mut subject = Subject {
            ledger: Ledger::default(), patience, journal: Vec::new(), waiting: Vec::new(), refused: Vec::new(), duplicates: 0,
        };
        if nearly_full {
            let card = Card { store: 0, item: 0 };
            oracle.start.insert(card, i64::MAX - 5);
            subject.ledger.set_amount(card, i64::MAX - 5);
        }
        for (step, batch_ends) in steps {
            match step {
                Step::Arrives(event) => {
                    oracle.arrives(event);
                    subject.arrives(event);
                }
                Step::ClockTicks => {
                    oracle.clock_ticks(tries);
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
            let amounts: BTreeMap<Card, i128> = subject.ledger.amounts().map(|(card, amount)| (card, amount.into())).collect();
            for (card, amount) in &amounts {
                prop_assert_eq!(oracle.amount(*card), Some(*amount));
                prop_assert!(*amount >= 0);
            }
            let cards = oracle.journal.iter().map(|event| event.card).chain(oracle.start.keys().copied());
            prop_assert!(cards.into_iter().all(|card| amounts.contains_key(&card)));
        }
    }
}
