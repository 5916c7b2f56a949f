//! What the tables must hold: the topic folded with the plain rules. Pure. Where the clock decided
//! (a waiting sale was given up), the fold takes the recorded decision and checks that the rules
//! allowed it.

use events::stock::{Card, StockEvent};
use hashbrown::{HashMap, HashSet};
use stock::rules::{Decision, Ledger};
use uuid::Uuid;

/// Differences that are told one by one; the rest is only counted.
const TOLD: usize = 20;

/// Where a record stands: partition and offset.
pub(crate) type Place = (i32, i64);

/// A refusal that was recorded: its class, by the place of the record it refuses.
pub(crate) type Refusals = HashMap<Place, String>;

/// Where the waiting sales say that their records stand: their ids, by place.
pub(crate) type WaitingPlaces = HashMap<Place, Uuid>;

/// What differs, and how much was compared.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    pub(crate) told: Vec<String>,
    pub(crate) count: u64,
}

impl Differences {
    pub(crate) fn add(&mut self, what: String) {
        self.count += 1;
        if self.told.len() < TOLD {
            self.told.push(what);
        }
    }
}

/// How many records ended where.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) records: u64,
    pub(crate) duplicates: u64,
    pub(crate) refused: u64,
}

/// The fold over a topic, record by record, one partition after the other.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    ledger: Ledger,
    refusals: Refusals,
    waits_at: WaitingPlaces,
    /// By id: events that are applied or wait, and the place they came from.
    living: HashMap<Uuid, StockEvent>,
    /// Sales that were given up, whose repeats while they waited were duplicates.
    given_up: HashMap<Uuid, StockEvent>,
    /// Ids that were given up once, and came again, and are in the tables now.
    revived: HashSet<Uuid>,
    /// The partition of each card, and cards that several partitions have: their order is not known.
    homes: HashMap<Card, i32>,
    mixed: HashSet<Card>,
    /// Refused as a conflict; looked at when all is folded.
    conflicts: Vec<(Place, StockEvent)>,
    pub(crate) counts: Counts,
    pub(crate) differences: Differences,
}

impl Fold {
    pub(crate) fn new(refusals: Refusals, waits_at: WaitingPlaces, revived: HashSet<Uuid>) -> Fold {
        Fold { refusals, waits_at, revived, ..Fold::default() }
    }

    /// The next record: its place, and what it says, or that it cannot be read.
    pub(crate) fn record(&mut self, place: Place, decoded: Result<StockEvent, events::Refusal>) {
        self.counts.records += 1;
        let refusal = self.refusals.remove(&place);
        self.counts.refused += u64::from(refusal.is_some());
        if let Some(id) = self.waits_at.remove(&place)
            && decoded.as_ref().ok().is_none_or(|event| event.transaction_id != id)
        {
            self.differ(place, format!("is not the sale {id}, which waits as the one that came there"));
        }
        match (decoded, refusal.as_deref()) {
            (Err(_), Some("InvalidEvent")) => {}
            (Err(why), _) => self.differ(place, format!("is not an event ({}), but was not refused", why.error)),
            // the database would not take it; the log says why
            (Ok(_), Some("NotApplicable")) => {}
            (Ok(event), Some("ConflictingTransaction")) => self.conflicts.push((place, event)),
            (Ok(event), Some("InsufficientStock" | "UnknownCard")) => self.given_up(place, &event),
            (Ok(event), Some("StockOverflow")) => {
                if !matches!(self.decide(place, &event), Decision::Refused(_)) {
                    self.differ(place, "was refused as an overflow, which it is not".into());
                }
            }
            (Ok(_), Some(other)) => self.differ(place, format!("was refused as {other}, which no rule of stock is")),
            (Ok(event), None) => self.accepted(place, &event),
        }
    }

    fn accepted(&mut self, place: Place, event: &StockEvent) {
        let id = &event.transaction_id;
        // a repeat that came while the sale still waited, before it was given up
        if self.given_up.get(id) == Some(event) && !self.revived.contains(id) {
            self.counts.duplicates += 1;
            return;
        }
        match self.decide(place, event) {
            Decision::Applied { .. } | Decision::Waits => {
                self.living.insert(event.transaction_id, *event);
            }
            Decision::Duplicate => self.counts.duplicates += 1,
            Decision::Refused(why) => self.differ(place, format!("had to be refused: {}", why.error)),
        }
    }

    fn given_up(&mut self, place: Place, sale: &StockEvent) {
        match self.decide(place, sale) {
            Decision::Waits => {
                self.ledger.give_up(sale);
                self.given_up.insert(sale.transaction_id, *sale);
            }
            // with records in several partitions it may have come before its stock
            Decision::Applied { .. } if self.mixed.contains(&sale.card) => {}
            _ => self.differ(place, "was given up, though it fitted when it came".into()),
        }
    }

    fn decide(&mut self, place: Place, event: &StockEvent) -> Decision {
        if *self.homes.entry(event.card).or_insert(place.0) != place.0 {
            self.mixed.insert(event.card);
        }
        self.ledger.decide(event, &mut Vec::new())
    }

    /// All records are folded: looks at what could only be judged at the end.
    pub(crate) fn finish(mut self) -> Expected {
        for (place, event) in std::mem::take(&mut self.conflicts) {
            let id = &event.transaction_id;
            let other = self.living.get(id).or_else(|| self.given_up.get(id));
            if other.is_none_or(|other| *other == event) {
                self.differ(place, format!("was refused as a conflict, but no other event has the id {id}"));
            }
        }
        for place in std::mem::take(&mut self.refusals).into_keys() {
            self.differ(place, "was refused, but is not on the topic".into());
        }
        for (place, id) in std::mem::take(&mut self.waits_at) {
            self.differ(place, format!("is not there, but the sale {id} waits as the one that came there"));
        }
        let waiting = self.ledger.waiting().map(|sale| sale.transaction_id).collect();
        Expected {
            amounts: self.ledger.amounts().collect(),
            living: self.living,
            waiting,
            mixed: self.mixed,
            sums: HashMap::new(),
            stores: HashMap::new(),
            counts: self.counts,
            differences: self.differences,
        }
    }

    fn differ(&mut self, place: Place, what: String) {
        self.differences.add(format!("record {}:{} {what}", place.0, place.1));
    }
}

/// What the tables must hold. Each row that is looked at is taken out: what is left is missing.
#[derive(Debug)]
pub(crate) struct Expected {
    amounts: HashMap<Card, i64>,
    living: HashMap<Uuid, StockEvent>,
    waiting: HashSet<Uuid>,
    pub(crate) mixed: HashSet<Card>,
    /// Changes of the journal, by card.
    sums: HashMap<Card, i64>,
    /// Stores that have items, and whether each was found among the stores.
    stores: HashMap<i64, bool>,
    pub(crate) counts: Counts,
    pub(crate) differences: Differences,
}

impl Expected {
    /// A row of the journal.
    pub(crate) fn transaction(&mut self, event: &StockEvent) {
        let sign = if event.movement == events::stock::Movement::Incoming { 1 } else { -1 };
        *self.sums.entry(event.card).or_default() += sign * i64::from(event.value);
        self.take("transactions", event, false);
    }

    /// A row of the waiting sales.
    pub(crate) fn waiting_sale(&mut self, sale: &StockEvent) {
        self.take("waiting_sales", sale, true);
    }

    /// A row of the items, after all of the journal.
    pub(crate) fn item(&mut self, card: Card, amount: i64) {
        self.stores.insert(card.store, false);
        let expected = self.amounts.remove(&card);
        if expected != Some(amount) && !self.mixed.contains(&card) {
            let events = expected.map_or("do not know it".into(), |expected| format!("say {expected}"));
            self.differences.add(format!("items: {card} is {amount}, the events {events}"));
        }
        let sum = self.sums.remove(&card).unwrap_or(0);
        if sum != amount {
            self.differences.add(format!("items: {card} is {amount}, its journal sums up to {sum}"));
        }
        if amount < 0 {
            self.differences.add(format!("items: {card} is {amount}, less than 0"));
        }
    }

    /// A row of the stores, after all of the items.
    pub(crate) fn store(&mut self, store: i64) {
        match self.stores.get_mut(&store) {
            Some(found) => *found = true,
            None => self.differences.add(format!("stores: {store} is there, but has no items")),
        }
    }

    /// All rows were looked at.
    pub(crate) fn finish(mut self) -> (Counts, Differences) {
        for event in self.living.values() {
            self.differences.add(format!(
                "{} of {} on {} is nowhere",
                event.movement.as_str(),
                event.transaction_id,
                event.card
            ));
        }
        for (card, amount) in self.amounts.iter().filter(|(card, _)| !self.mixed.contains(*card)) {
            self.differences.add(format!("items: {card} is missing, the events say {amount}"));
        }
        for card in self.sums.keys() {
            self.differences.add(format!("items: {card} is missing, it has transactions"));
        }
        for (store, _) in self.stores.iter().filter(|(_, found)| !**found) {
            self.differences.add(format!("stores: {store} is missing, it has items"));
        }
        (self.counts, self.differences)
    }

    fn take(&mut self, table: &str, event: &StockEvent, waits: bool) {
        let id = event.transaction_id;
        let waits_in_fold = self.waiting.contains(&id);
        match self.living.remove(&id) {
            None => self.differences.add(format!("{table}: {id} is there, but no event on the topic accounts for it")),
            Some(expected) if expected != *event => {
                self.differences.add(format!("{table}: {id} has other content than its event"));
            }
            Some(_) if waits_in_fold != waits && !self.mixed.contains(&event.card) => {
                let must = if waits_in_fold { "wait" } else { "be applied" };
                self.differences.add(format!("{table}: {id} on {} is there, but must {must}", event.card));
            }
            Some(_) => {}
        }
    }
}
