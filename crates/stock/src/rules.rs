//! The rules of stock: events in, decisions out. Knows no SQL, no Kafka and no clock.

use std::{mem, time::Duration};

use events::{
    Refusal, RefusalClass, Timestamp,
    stock::{Card, Movement, StockEvent},
};
use hashbrown::HashMap;
use uuid::Uuid;

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to the journal; the card now has this amount. `created`: the card is new.
    Applied {
        /// Pieces on hand after it.
        amount: i64,
        /// Whether the card came to be by it.
        created: bool,
    },
    /// A sale that exceeds what is there now: it waits.
    Waits,
    /// Its id is known, with the same content: it changes nothing.
    Duplicate,
    /// It goes to the errors.
    Refused(Refusal),
}

/// A sale that waited and now fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// The sale.
    pub sale: StockEvent,
    /// Pieces on hand after it.
    pub amount: i64,
}

/// A card whose amount is another than it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// The card.
    pub card: Card,
    /// Its amount before; none when it did not exist.
    pub before: Option<i64>,
    /// Its amount now.
    pub now: i64,
}

/// All of an event but its id: what makes a repeat a duplicate or a conflict.
type Content = (Movement, Timestamp, Card, i32);

#[derive(Debug, Clone, Copy)]
struct Balance {
    amount: i64,
    /// The amount when the batch began; none when the card is new in it.
    before: Option<i64>,
    changed: bool,
}

/// Stock on hand, waiting sales and known ids, as far as they matter to the events of one batch.
#[derive(Debug, Default)]
pub struct Ledger {
    balances: HashMap<Card, Balance>,
    /// Oldest first.
    waiting: HashMap<Card, Vec<StockEvent>>,
    known: HashMap<Uuid, Content>,
    changed: Vec<Card>,
}

impl Ledger {
    /// With room for so many events: a map that grows is hashed again.
    pub fn with_room(events: usize) -> Ledger {
        Ledger { balances: HashMap::with_capacity(events), known: HashMap::with_capacity(events), ..Ledger::default() }
    }

    /// Takes over the amount of a card that exists.
    pub fn set_amount(&mut self, card: Card, amount: i64) {
        self.balances.insert(card, Balance { amount, before: Some(amount), changed: false });
    }

    /// Pieces on hand; none when the card does not exist.
    pub fn amount(&self, card: Card) -> Option<i64> {
        self.balances.get(&card).map(|balance| balance.amount)
    }

    /// Every card and its amount.
    pub fn amounts(&self) -> impl Iterator<Item = (Card, i64)> + '_ {
        self.balances.iter().map(|(card, balance)| (*card, balance.amount))
    }

    /// Takes over a sale that waits already, after those that are older.
    pub fn set_waiting(&mut self, sale: StockEvent) {
        self.known.insert(sale.transaction_id, content(&sale));
        self.waiting.entry(sale.card).or_default().push(sale);
    }

    /// Every sale that waits.
    pub fn waiting(&self) -> impl Iterator<Item = &StockEvent> {
        self.waiting.values().flatten()
    }

    /// Takes over an event of the journal, whose id may come again.
    pub fn set_applied(&mut self, event: &StockEvent) {
        self.known.insert(event.transaction_id, content(event));
    }

    /// Whether an event with this id was applied or waits.
    pub fn knows(&self, id: Uuid) -> bool {
        self.known.contains_key(&id)
    }

    /// A waiting sale was given up: its id may come again and is decided again. False when it did not wait.
    pub fn give_up(&mut self, sale: &StockEvent) -> bool {
        let Some(waiting) = self.waiting.get_mut(&sale.card) else { return false };
        let Some(place) = waiting.iter().position(|other| other.transaction_id == sale.transaction_id) else {
            return false;
        };
        waiting.remove(place);
        self.known.remove(&sale.transaction_id);
        true
    }

    /// The rules, for the next event. Sales that its stock sets free are appended to `released`, in
    /// the order in which they are applied, after the event itself.
    pub fn decide(&mut self, event: &StockEvent, released: &mut Vec<Released>) -> Decision {
        let content = content(event);
        match self.known.get(&event.transaction_id) {
            Some(known) if *known == content => return Decision::Duplicate,
            Some(known) => return Decision::Refused(conflict(event.transaction_id, *known, content)),
            None => {}
        }
        let amount = self.amount(event.card);
        let value = i64::from(event.value);
        let decision = match event.movement {
            Movement::Incoming => match amount.unwrap_or(0).checked_add(value) {
                Some(now) => self.apply(event.card, amount, now),
                None => {
                    let error = format!("{} stock amount would exceed {}!", event.card, i64::MAX);
                    return Decision::Refused(Refusal { error, class: RefusalClass::StockOverflow });
                }
            },
            // a sale that exceeds the stock waits
            Movement::Sale => match amount {
                Some(on_hand) if on_hand >= value => self.apply(event.card, amount, on_hand - value),
                _ => {
                    self.waiting.entry(event.card).or_default().push(*event);
                    Decision::Waits
                }
            },
        };
        self.known.insert(event.transaction_id, content);
        if event.movement == Movement::Incoming {
            self.free(event.card, released);
        }
        decision
    }

    /// Cards that changed, in the order of their first change.
    pub fn changed(&self) -> impl Iterator<Item = Changed> + '_ {
        self.changed.iter().map(|card| {
            let balance = &self.balances[card];
            Changed { card: *card, before: balance.before, now: balance.amount }
        })
    }

    /// Waiting sales of a card that fit now, oldest first; a smaller one may pass a larger one
    /// that still does not fit.
    fn free(&mut self, card: Card, released: &mut Vec<Released>) {
        if self.waiting.is_empty() {
            return;
        }
        let Some(waiting) = self.waiting.get_mut(&card) else { return };
        let mut sales = mem::take(waiting);
        sales.retain(|sale| {
            let on_hand = self.amount(card);
            let left = on_hand.unwrap_or(0) - i64::from(sale.value);
            if left >= 0 {
                self.apply(card, on_hand, left);
                released.push(Released { sale: *sale, amount: left });
            }
            left < 0
        });
        self.waiting.insert(card, sales);
    }

    fn apply(&mut self, card: Card, before: Option<i64>, now: i64) -> Decision {
        let balance = self.balances.entry(card).or_insert(Balance { amount: now, before, changed: false });
        balance.amount = now;
        if !balance.changed {
            balance.changed = true;
            self.changed.push(card);
        }
        Decision::Applied { amount: now, created: before.is_none() }
    }
}

/// What becomes of a waiting sale when the clock tries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retry {
    /// It fits; so much is left.
    Applied {
        /// Pieces on hand after it.
        amount: i64,
    },
    /// Tried again after this pause.
    Waits(Duration),
    /// That was its last try.
    GivenUp(Refusal),
}

/// How often, and how far apart, the clock tries a waiting sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// `KAFKA_EVENT_RETRIES`: tries at most.
    pub tries: u32,
    /// `STOCK_RETRY_MS`: the pause before the first try; each further one is twice as long.
    pub first_pause: Duration,
}

impl RetryPolicy {
    /// The pause after `tries` tries: twice as long each time, an hour at most.
    pub fn pause(&self, tries: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(3_600);
        2_u32
            .checked_pow(tries)
            .and_then(|times| self.first_pause.checked_mul(times))
            .map_or(LONGEST, |pause| pause.min(LONGEST))
    }

    /// The rule for a sale that was tried `tries` times before, when `on_hand` pieces are there.
    pub fn retry(&self, sale: &StockEvent, on_hand: Option<i64>, tries: u32) -> Retry {
        let value = i64::from(sale.value);
        match on_hand {
            Some(on_hand) if on_hand >= value => Retry::Applied { amount: on_hand - value },
            _ if tries + 1 < self.tries => Retry::Waits(self.pause(tries + 1)),
            _ => Retry::GivenUp(insufficient(sale, on_hand)),
        }
    }
}

/// Why a sale does not fit.
pub fn insufficient(sale: &StockEvent, on_hand: Option<i64>) -> Refusal {
    let error = match on_hand {
        None => format!("{} does not exist!", sale.card),
        Some(on_hand) => {
            format!("{} stock amount would be less than 0: {}!", sale.card, on_hand - i64::from(sale.value))
        }
    };
    Refusal {
        error,
        class: if on_hand.is_none() { RefusalClass::UnknownCard } else { RefusalClass::InsufficientStock },
    }
}

fn content(event: &StockEvent) -> Content {
    (event.movement, event.date, event.card, event.value)
}

fn conflict(id: Uuid, known: Content, other: Content) -> Refusal {
    let say = |(movement, date, card, value): Content| format!("{} of {value} on {card} at {date}", movement.as_str());
    Refusal {
        error: format!("transaction {id} is known already as {}, and cannot also be {}", say(known), say(other)),
        class: RefusalClass::ConflictingTransaction,
    }
}
