//! The pass by card: what its events make of it, by the plain rules, beside its row and its journal.
//! Pure. Where the clock decided (a waiting sale was given up), it takes the recorded decision and
//! checks that the rules allowed it.
//!
//! Memory holds the sales that wait on one card at a time.

use events::{
    Timestamp,
    stock::{Card, Movement, StockEvent},
};
use hashbrown::HashMap;
use stock::rules::{Decision, Ledger};
use uuid::Uuid;

use super::{
    entry::{Became, Place, Step, Table},
    report::{Difference, Differences, Kind},
};

/// Events after which the rules may forget their ids, as the service does between batches: each
/// comes once here.
const FORGET_AFTER: usize = 4_096;

/// Goes through all steps, sorted.
#[derive(Debug, Default)]
pub(super) struct Cards {
    store: Option<Store>,
    card: Option<OneCard>,
    /// Rows of `items`.
    pub(super) items: u64,
    /// Cards with records in several partitions: their order is not known.
    pub(super) mixed: u64,
    pub(super) differences: Differences,
}

#[derive(Debug)]
struct Store {
    number: i64,
    has_row: bool,
    has_items: bool,
}

#[derive(Debug)]
struct OneCard {
    card: Card,
    ledger: Ledger,
    /// Events since the ledger has forgotten ids.
    decided: usize,
    /// Sales that wait in the ledger, and where their rows are.
    waiting: HashMap<Uuid, Became>,
    partition: Option<i32>,
    mixed: bool,
    /// The journal's sum; none without rows.
    journal: Option<i128>,
    amount: Option<i64>,
    /// What differs if the order is known.
    differences: Differences,
}

impl Cards {
    pub(super) fn step(&mut self, card: Card, step: Step) {
        if self.store.as_ref().is_none_or(|store| store.number != card.store) {
            self.finish_store();
            self.store = Some(Store { number: card.store, has_row: false, has_items: false });
        }
        if matches!(step, Step::Store) {
            self.store.iter_mut().for_each(|store| store.has_row = true);
            return;
        }
        if self.card.as_ref().is_none_or(|of| of.card != card) {
            self.finish_card();
            self.card = Some(OneCard::new(card));
        }
        if matches!(step, Step::Item(_)) {
            self.items += 1;
            self.store.iter_mut().for_each(|store| store.has_items = true);
        }
        self.card.iter_mut().for_each(|of| of.step(step));
    }

    /// All steps have come.
    pub(super) fn finish(mut self) -> Cards {
        self.finish_store();
        self
    }

    fn finish_store(&mut self) {
        self.finish_card();
        let Some(Store { number, has_row, has_items }) = self.store.take() else { return };
        let what = match (has_row, has_items) {
            (true, false) => format!("stores: {number} is there, but has no items"),
            (false, true) => format!("stores: {number} is missing, it has items"),
            _ => return,
        };
        self.differences.add(Kind::Store, || Difference::new(what));
    }

    fn finish_card(&mut self) {
        let Some(card) = self.card.take() else { return };
        self.mixed += u64::from(card.mixed);
        self.differences.append(card.finish());
    }
}

impl OneCard {
    fn new(card: Card) -> OneCard {
        OneCard {
            card,
            ledger: Ledger::default(),
            decided: 0,
            waiting: HashMap::new(),
            partition: None,
            mixed: false,
            journal: None,
            amount: None,
            differences: Differences::default(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Store => {}
            Step::Journal(change) => *self.journal.get_or_insert(0) += i128::from(change),
            Step::Item(amount) => self.amount = Some(amount),
            Step::Record { place, id, movement, value, became, elsewhere } => {
                let of_record = *self.partition.get_or_insert(place.0);
                self.mixed |= elsewhere || of_record != place.0;
                let card = self.card;
                // its date does not matter to the rules
                let event = StockEvent { transaction_id: id, movement, date: Timestamp(0), card, value };
                self.record(place, &event, became);
            }
        }
    }

    fn record(&mut self, place: Place, event: &StockEvent, became: Became) {
        let (card, id, there) = (self.card, event.transaction_id, self.ledger.amount(self.card));
        let value = i64::from(event.value);
        let mut differ = |kind, what: &str| {
            self.differences.add(kind, || Difference::of_record(place, what).id(id).card(card));
        };
        match became {
            Became::GivenUp => {
                if event.movement != Movement::Sale || there.is_some_and(|there| there >= value) {
                    differ(Kind::WronglyRefused, "was given up, though it fitted when it came");
                }
                return;
            }
            Became::Overflow => {
                if event.movement != Movement::Incoming || there.unwrap_or(0).checked_add(value).is_some() {
                    differ(Kind::WronglyRefused, "was refused as an overflow, which it is not");
                }
                return;
            }
            Became::Row(_) | Became::Nothing => {}
        }
        if became == Became::Row(Table::Journal) {
            let sign = if event.movement == Movement::Incoming { 1 } else { -1 };
            *self.journal.get_or_insert(0) += i128::from(sign * value);
        }
        let mut released = Vec::new();
        match self.ledger.decide(event, &mut released) {
            Decision::Waits => {
                self.waiting.insert(id, became);
            }
            Decision::Applied { .. } => self.applied(id, became),
            Decision::Refused(why) => differ(Kind::NotRefused, &format!("had to be refused: {}", why.error)),
            // each id comes once
            Decision::Duplicate => {}
        }
        for released in released {
            let id = released.sale.transaction_id;
            let became = self.waiting.remove(&id).unwrap_or(Became::Nothing);
            self.applied(id, became);
        }
        self.decided += 1;
        if self.decided >= FORGET_AFTER.max(self.waiting.len()) {
            self.forget_ids();
        }
    }

    fn applied(&mut self, id: Uuid, became: Became) {
        if became == Became::Row(Table::Waiting) {
            self.wrong_table(Table::Waiting, id, "be applied");
        }
    }

    fn wrong_table(&mut self, table: Table, id: Uuid, must: &str) {
        let card = self.card;
        let what = || format!("{}: {id} on {card} is there, but must {must}", table.name());
        self.differences.add(Kind::WrongTable, || Difference::new(what()).id(id).card(card));
    }

    fn forget_ids(&mut self) {
        let mut ledger = Ledger::default();
        if let Some(amount) = self.ledger.amount(self.card) {
            ledger.set_amount(self.card, amount);
        }
        self.ledger.waiting().for_each(|sale| ledger.set_waiting(*sale));
        (self.ledger, self.decided) = (ledger, 0);
    }

    /// Nothing more comes of this card.
    fn finish(mut self) -> Differences {
        for (id, became) in std::mem::take(&mut self.waiting) {
            if became == Became::Row(Table::Journal) {
                self.wrong_table(Table::Journal, id, "wait");
            }
        }
        let (card, expected, sum) = (self.card, self.ledger.amount(self.card), self.journal.unwrap_or(0));
        let differ = |what: String| move || Difference::new(format!("items: {card} {what}")).card(card);
        match (self.amount, expected) {
            (None, None) => {}
            (None, Some(expected)) => {
                self.differences.add(Kind::Amount, differ(format!("is missing, the events say {expected}")));
            }
            (Some(amount), None) => {
                self.differences.add(Kind::Amount, differ(format!("is {amount}, the events do not know it")));
            }
            (Some(amount), Some(expected)) if amount != expected => {
                self.differences.add(Kind::Amount, differ(format!("is {amount}, the events say {expected}")));
            }
            _ => {}
        }
        // where the order is not known, neither is what it leads to
        let mut differences = if self.mixed { Differences::default() } else { self.differences };
        match self.amount {
            Some(amount) if i128::from(amount) != sum => {
                differences.add(Kind::JournalSum, differ(format!("is {amount}, its journal sums up to {sum}")));
            }
            None if self.journal.is_some() => {
                differences.add(Kind::JournalSum, differ("is missing, it has transactions".into()));
            }
            _ => {}
        }
        if let Some(amount @ ..0) = self.amount {
            differences.add(Kind::Amount, differ(format!("is {amount}, less than 0")));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Card = Card { store: 4, item: 3 };
    const APPLIED: Became = Became::Row(Table::Journal);
    const WAITS: Became = Became::Row(Table::Waiting);

    fn step(offset: i64, movement: Movement, value: i32, became: Became) -> Step {
        let id = Uuid::from_u128(offset as u128);
        Step::Record { place: (0, offset), id, movement, value, became, elsewhere: false }
    }

    fn incoming(offset: i64, value: i32) -> Step {
        step(offset, Movement::Incoming, value, APPLIED)
    }

    fn sale(offset: i64, value: i32, became: Became) -> Step {
        step(offset, Movement::Sale, value, became)
    }

    /// What differs when these are the steps of a card whose store has a row.
    fn differences(steps: &[Step]) -> Vec<String> {
        let mut cards = Cards::default();
        cards.step(CARD, Step::Store);
        steps.iter().for_each(|step| cards.step(CARD, *step));
        cards.finish().differences.lines()
    }

    #[test]
    fn a_card_is_what_its_events_make_of_it() {
        let steps = [sale(1, 5, APPLIED), incoming(2, 3), sale(3, 9, WAITS), incoming(4, 3), Step::Item(1)];
        assert_eq!(differences(&steps), [""; 0]);
        assert_eq!(differences(&[]), ["stores: 4 is there, but has no items"]);
        let wrong = ["items: 4-3 is 2, the events say 3", "items: 4-3 is 2, its journal sums up to 3"];
        assert_eq!(differences(&[incoming(1, 3), Step::Item(2)]), wrong);
        let missing = [
            "items: 4-3 is missing, the events say 3",
            "items: 4-3 is missing, it has transactions",
            "stores: 4 is there, but has no items",
        ];
        assert_eq!(differences(&[incoming(1, 3)]), missing);
        let unknown = [
            "items: 4-3 is -1, the events do not know it",
            "items: 4-3 is -1, less than 0",
            "items: 4-3 is -1, its journal sums up to 0",
        ];
        assert_eq!(differences(&[Step::Item(-1)]), unknown);
    }

    #[test]
    fn a_sale_must_be_where_the_rules_put_it() {
        let id = |offset: u128| Uuid::from_u128(offset);
        let steps = [incoming(1, 3), sale(2, 2, WAITS), sale(3, 9, APPLIED), Step::Journal(9), Step::Item(1)];
        let wrong = [
            format!("waiting_sales: {} on 4-3 is there, but must be applied", id(2)),
            format!("transactions: {} on 4-3 is there, but must wait", id(3)),
            "items: 4-3 is 1, its journal sums up to 3".to_owned(),
        ];
        assert_eq!(differences(&steps), wrong);
        let given_up = [incoming(1, 3), sale(2, 3, Became::GivenUp), sale(3, 4, Became::GivenUp), Step::Item(3)];
        assert_eq!(differences(&given_up), ["record 0:2 was given up, though it fitted when it came"]);
        let overflow = step(2, Movement::Incoming, 1, Became::Overflow);
        let wrong = ["record 0:2 was refused as an overflow, which it is not"];
        assert_eq!(differences(&[incoming(1, 3), overflow, Step::Item(3)]), wrong);
    }

    #[test]
    fn records_in_several_partitions_have_no_order_but_a_sum() {
        let elsewhere = |place| Step::Record {
            place,
            id: Uuid::max(),
            movement: Movement::Incoming,
            value: 5,
            became: APPLIED,
            elsewhere: place == (0, 9),
        };
        for place in [(0, 9), (1, 0)] {
            let wrong = ["items: 4-3 is 6, its journal sums up to 5"];
            assert_eq!(differences(&[sale(1, 5, APPLIED), elsewhere(place), Step::Journal(5), Step::Item(5)]), [""; 0]);
            assert_eq!(differences(&[sale(1, 5, APPLIED), elsewhere(place), Step::Journal(5), Step::Item(6)]), wrong);
        }
    }

    #[test]
    fn a_card_with_any_number_of_events_is_forgotten_bit_by_bit() {
        let mut steps = vec![sale(0, 2_000_000_000, WAITS)];
        steps.extend((1..20_000).map(|offset| incoming(offset, 2)));
        steps.push(Step::Item(39_998));
        assert_eq!(differences(&steps), [""; 0]);
    }
}
