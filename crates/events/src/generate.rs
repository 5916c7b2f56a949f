//! Rows of stock files by the million, for trying, testing and measuring: the same for the same
//! seed and shape, each with the outcome that it was made for. Memory does not grow with the
//! rows: one small entry a card, and bounded windows of what came before.

use std::collections::VecDeque;

use crate::stock::{CSV, MAX_VALUE, Movement};

mod random;
mod text;

use random::Random;
use text::Text;

/// 2026-01-01T00:00:00Z, the date of the first rows; dates rise from there.
const FIRST_SECOND: i64 = 1_767_225_600;
/// How far back duplicates and conflicts reach, in rows; and how many cards with stock are known.
const WINDOW: usize = 4096;
/// The early sales that may wait for their stock at once.
const MAX_WAITING: usize = 4096;
/// An early sale's stock comes so many rows later, at the soonest; at most twice that.
const COVER_AFTER: u64 = 1000;
/// A card holds no more than this, so that a sale of more than it can never be covered.
const MAX_AMOUNT: i64 = 1_000_000_000;
/// The most cards: 16 bytes each are kept.
const MAX_CARDS: u64 = 100_000_000;

/// What is generated. The shares are of all rows; what they leave is plain, and `sales` of it are
/// sales, as far as there is anything to sell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Stores are numbered from 1.
    pub stores: u64,
    /// Items are numbered from 1, in each store.
    pub items: u64,
    /// Share of sales among the plain rows.
    pub sales: f64,
    /// Share of sales whose stock comes later.
    pub early: f64,
    /// Share of sales whose stock never comes.
    pub hopeless: f64,
    /// Share of rows that repeat an earlier one word for word.
    pub duplicates: f64,
    /// Share of rows with an earlier one's transaction_id and another value.
    pub conflicts: f64,
    /// Share of rows that no reader accepts.
    pub bad: f64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            stores: 50,
            items: 2000,
            sales: 0.5,
            early: 0.01,
            hopeless: 0.0005,
            duplicates: 0.005,
            conflicts: 0.001,
            bad: 0.001,
        }
    }
}

/// A shape that cannot be generated, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ShapeError(String);

/// What a row was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpectedOutcome {
    /// Goods come in.
    Incoming,
    /// A sale within the stock.
    Sale,
    /// A sale beyond the stock; it comes at most some thousand rows later, see
    /// [`Generator::uncovered`].
    Early,
    /// A sale whose stock never comes: refused in the end.
    Hopeless,
    /// An earlier row again, accepted and without effect.
    Duplicate,
    /// An earlier row's transaction_id with another value: refused.
    Conflict,
    /// Refused by the reader of the file.
    Bad,
}

/// Writes rows, without end.
#[derive(Debug)]
pub struct Generator {
    shape: Shape,
    /// Upper ends of the outcomes' ranges in a roll of 32 bits.
    ranges: [(u64, ExpectedOutcome); 5],
    sales: u64,
    random: Random,
    text: Text,
    second: i64,
    rows: u64,
    cards: Vec<Stock>,
    /// Rows that a duplicate or a conflict may repeat.
    recent: Vec<Event>,
    /// Cards that stock came to lately: there a sale finds something.
    stocked: Vec<usize>,
    /// The row at which a waiting sale's stock is to come, and its card. It may have come before.
    waiting: VecDeque<(u64, usize)>,
    uncovered: usize,
}

/// A card as the stock service would have it.
#[derive(Debug, Clone, Copy, Default)]
struct Stock {
    amount: i64,
    /// The one sale that waits; 0 for none.
    early: i64,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    id: u128,
    movement: Movement,
    second: i64,
    store: u64,
    item: u64,
    value: i64,
}

impl Generator {
    /// A generator of rows in this shape.
    pub fn new(seed: u64, shape: Shape) -> Result<Generator, ShapeError> {
        let cards = shape.cards()?;
        let mut end = 0.0;
        let ranges = [
            (shape.early, ExpectedOutcome::Early),
            (shape.hopeless, ExpectedOutcome::Hopeless),
            (shape.duplicates, ExpectedOutcome::Duplicate),
            (shape.conflicts, ExpectedOutcome::Conflict),
            (shape.bad, ExpectedOutcome::Bad),
        ];
        let ranges = ranges.map(|(share, outcome)| {
            end += share;
            (threshold(end), outcome)
        });
        Ok(Generator {
            shape,
            ranges,
            sales: threshold(shape.sales),
            random: Random::new(seed),
            text: Text::default(),
            second: FIRST_SECOND,
            rows: 0,
            cards: vec![Stock::default(); cards],
            recent: Vec::with_capacity(WINDOW),
            stocked: Vec::with_capacity(WINDOW),
            waiting: VecDeque::new(),
            uncovered: 0,
        })
    }

    /// The header line, with its line break.
    pub fn header_line() -> String {
        CSV.header_line() + "\n"
    }

    /// Appends a row, with its line break, and says what it was made for.
    pub fn write_row(&mut self, out: &mut Vec<u8>) -> ExpectedOutcome {
        self.rows += 1;
        self.second += self.random.below(2) as i64;
        let roll = self.random.below(1 << 32);
        let outcome = self.ranges.iter().find(|(end, _)| roll < *end).map(|(_, outcome)| *outcome);
        let written = match outcome {
            Some(ExpectedOutcome::Early) => self.early(out),
            Some(ExpectedOutcome::Hopeless) => Some(self.hopeless(out)),
            Some(ExpectedOutcome::Duplicate) => self.duplicate(out),
            Some(ExpectedOutcome::Conflict) => self.conflict(out),
            Some(ExpectedOutcome::Bad) => Some(self.bad(out)),
            _ => None,
        };
        match written {
            Some(outcome) => outcome,
            None if self.random.below(1 << 32) < self.sales => self.sale(out),
            None => self.incoming(out),
        }
    }

    /// Early sales whose stock has not come yet.
    pub fn uncovered(&self) -> usize {
        self.uncovered
    }

    fn incoming(&mut self, out: &mut Vec<u8>) -> ExpectedOutcome {
        let due = self.waiting.front().is_some_and(|(row, _)| *row <= self.rows || self.waiting.len() == MAX_WAITING);
        let card = match due.then(|| self.waiting.pop_front()).flatten() {
            Some((_, card)) => card,
            None => self.any_card(),
        };
        let stock = &mut self.cards[card];
        let missing = (stock.early - stock.amount).max(0);
        let value = if stock.amount < MAX_AMOUNT { missing + 1 + self.random.below(500) as i64 } else { 1 };
        stock.amount += value;
        if (1..=stock.amount).contains(&stock.early) {
            stock.amount -= std::mem::take(&mut stock.early);
            self.uncovered -= 1;
        }
        if stock.amount > 0 {
            self.random.keep(&mut self.stocked, WINDOW, card);
        }
        self.remember(Movement::Incoming, card, value, out);
        ExpectedOutcome::Incoming
    }

    fn sale(&mut self, out: &mut Vec<u8>) -> ExpectedOutcome {
        let Some(card) = self.card_with_stock() else { return self.incoming(out) };
        let most = self.cards[card].amount.min(40) as u64;
        let value = 1 + self.random.below(most) as i64;
        self.cards[card].amount -= value;
        self.remember(Movement::Sale, card, value, out);
        ExpectedOutcome::Sale
    }

    fn early(&mut self, out: &mut Vec<u8>) -> Option<ExpectedOutcome> {
        // one at a time for a card: which of two goes first would be the rules' business
        let candidates = [(); 4].map(|()| self.any_card());
        let card = candidates.into_iter().find(|card| self.cards[*card].early == 0)?;
        let amount = self.cards[card].amount;
        if amount >= MAX_AMOUNT || self.waiting.len() == MAX_WAITING {
            return None;
        }
        let value = amount + 1 + self.random.below(50) as i64;
        self.cards[card].early = value;
        self.uncovered += 1;
        self.waiting.push_back((self.rows + COVER_AFTER + self.random.below(COVER_AFTER), card));
        self.remember(Movement::Sale, card, value, out);
        Some(ExpectedOutcome::Early)
    }

    fn duplicate(&mut self, out: &mut Vec<u8>) -> Option<ExpectedOutcome> {
        let event = self.earlier()?;
        self.text.write(&event, out);
        Some(ExpectedOutcome::Duplicate)
    }

    fn conflict(&mut self, out: &mut Vec<u8>) -> Option<ExpectedOutcome> {
        let event = self.earlier()?;
        let value = if event.value > 1 { event.value - 1 } else { 2 };
        self.text.write(&Event { value, ..event }, out);
        Some(ExpectedOutcome::Conflict)
    }

    /// More than any card holds, or an item that no store ever gets. Not remembered: sent again
    /// after its refusal, it would be judged again.
    fn hopeless(&mut self, out: &mut Vec<u8>) -> ExpectedOutcome {
        let mut event = self.event(Movement::Sale, 0, 0);
        event.store = 1 + self.random.below(self.shape.stores);
        event.item = 1 + self.random.below(self.shape.items);
        if self.random.below(2) == 0 {
            event.value = MAX_VALUE - self.random.below(1000) as i64;
        } else {
            event.item += self.shape.items;
            event.value = 1 + self.random.below(40) as i64;
        }
        self.text.write(&event, out);
        ExpectedOutcome::Hopeless
    }

    fn bad(&mut self, out: &mut Vec<u8>) -> ExpectedOutcome {
        let card = self.any_card();
        let value = 1 + self.random.below(500) as i64;
        let event = self.event(Movement::Incoming, card, value);
        let fault = text::FAULTS[self.random.below(text::FAULTS.len() as u64) as usize];
        self.text.write_bad(&event, fault, out);
        ExpectedOutcome::Bad
    }

    fn remember(&mut self, movement: Movement, card: usize, value: i64, out: &mut Vec<u8>) {
        let event = self.event(movement, card, value);
        self.random.keep(&mut self.recent, WINDOW, event);
        self.text.write(&event, out);
    }

    fn event(&mut self, movement: Movement, card: usize, value: i64) -> Event {
        let (store, item) = (card as u64 / self.shape.items + 1, card as u64 % self.shape.items + 1);
        Event { id: self.random.uuid(), movement, second: self.second, store, item, value }
    }

    fn earlier(&mut self) -> Option<Event> {
        let known = self.recent.len() as u64;
        (known > 0).then(|| self.recent[self.random.below(known) as usize])
    }

    fn any_card(&mut self) -> usize {
        self.random.below(self.cards.len() as u64) as usize
    }

    /// A card at random, else one that stock came to lately.
    fn card_with_stock(&mut self) -> Option<usize> {
        let card = self.any_card();
        if self.cards[card].amount > 0 {
            return Some(card);
        }
        for _ in 0..8 {
            let known = self.stocked.len() as u64;
            let card = *self.stocked.get(self.random.below(known.max(1)) as usize)?;
            if self.cards[card].amount > 0 {
                return Some(card);
            }
        }
        None
    }
}

impl Shape {
    /// How many cards there are, once everything about the shape is found to be possible.
    fn cards(&self) -> Result<usize, ShapeError> {
        let shares = [
            ("sales", self.sales),
            ("early", self.early),
            ("hopeless", self.hopeless),
            ("duplicates", self.duplicates),
            ("conflicts", self.conflicts),
            ("bad", self.bad),
        ];
        if let Some((name, share)) = shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(ShapeError(format!("the share of {name} is {share}, expected 0 to 1")));
        }
        let sum: f64 = shares[1..].iter().map(|(_, share)| share).sum();
        if sum > 1.0 {
            return Err(ShapeError(format!(
                "the shares of early, hopeless, duplicates, conflicts and bad add up to {sum}, which is more than 1"
            )));
        }
        match self.stores.checked_mul(self.items) {
            Some(cards @ 1..=MAX_CARDS) => Ok(cards as usize),
            _ => Err(ShapeError(format!(
                "{} stores x {} items: expected 1 to {MAX_CARDS} cards",
                self.stores, self.items
            ))),
        }
    }
}

/// A share as the upper end of a roll of 32 bits.
fn threshold(share: f64) -> u64 {
    (share * (1_u64 << 32) as f64) as u64
}
