//! What a file must lead to, from the plain meaning of its rows: no batches, no clock, no SQL.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use events::{
    Header, Row, RowReader,
    stock::{Card, Movement, StockEvent},
};
use uuid::Uuid;

/// What is there when all is done. [`super::found`] reads the same from the servers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Payloads on the events topic, sorted; a row that stands there twice is there twice.
    pub(crate) events: Vec<String>,
    /// On the errors topic: who, and why. A row's is `line 9`, an event's its transaction_id.
    pub(crate) errors: BTreeSet<(String, String)>,
    /// The journal.
    pub(crate) transactions: BTreeSet<Uuid>,
    /// The stock on hand.
    pub(crate) items: BTreeMap<Card, i64>,
    /// Sales that still wait.
    pub(crate) waiting: i64,
}

/// What the rows of a file, in their order, lead to on empty tables.
pub(crate) fn of_file(csv: &str) -> Result<Outcome> {
    let mut lines = csv.lines();
    let header = Header::read(lines.next().context("the file is empty")?.as_bytes())?;
    let (reader, mut row) = (RowReader::new(header), Row::default());
    let mut outcome = Outcome::default();
    let mut waiting: Vec<StockEvent> = Vec::new();
    let mut known = BTreeSet::new();
    for (line, number) in lines.zip(2..) {
        if let Err(refused) = reader.read(line.as_bytes(), &mut row) {
            outcome.errors.insert((format!("line {number}"), refused.error));
            continue;
        }
        outcome.events.push(String::from_utf8(row.payload.clone())?);
        let event = StockEvent::decode(&row.payload).map_err(|refusal| anyhow::anyhow!(refusal.error))?;
        if !known.insert(event.transaction_id) {
            continue;
        }
        if !outcome.apply(&event) {
            waiting.push(event);
        }
        waiting.retain(|sale| !outcome.apply(sale));
    }
    outcome.events.sort_unstable();
    for sale in waiting {
        let reason = match outcome.items.get(&sale.card) {
            None => format!("{} does not exist!", sale.card),
            Some(amount) => {
                format!("{} stock amount would be less than 0: {}!", sale.card, amount - i64::from(sale.value))
            }
        };
        outcome.errors.insert((sale.transaction_id.to_string(), reason));
    }
    Ok(outcome)
}

impl Outcome {
    /// Whether the event could be applied, and was.
    fn apply(&mut self, event: &StockEvent) -> bool {
        let value = i64::from(event.value);
        match (event.movement, self.items.get_mut(&event.card)) {
            (Movement::Incoming, _) => *self.items.entry(event.card).or_default() += value,
            (Movement::Sale, Some(amount)) if *amount >= value => *amount -= value,
            (Movement::Sale, _) => return false,
        }
        self.transactions.insert(event.transaction_id)
    }

    /// What `found` lacks or has too much of, in sentences; empty when all is as it must be.
    pub(crate) fn differences(&self, found: &Outcome) -> Vec<String> {
        let mut differences = Vec::new();
        if self.events != found.events {
            differences.push(format!("events: {} records, expected {}", found.events.len(), self.events.len()));
        }
        for (who, why) in self.errors.difference(&found.errors) {
            differences.push(format!("errors: nothing says of {who}: {why}"));
        }
        for (who, why) in found.errors.difference(&self.errors) {
            differences.push(format!("errors: not expected of {who}: {why}"));
        }
        for id in self.transactions.difference(&found.transactions) {
            differences.push(format!("transactions: {id} is missing"));
        }
        for id in found.transactions.difference(&self.transactions) {
            differences.push(format!("transactions: {id} is not expected"));
        }
        let cards: BTreeSet<_> = self.items.keys().chain(found.items.keys()).collect();
        let shown = |amount: Option<&i64>| amount.map_or("none".to_owned(), i64::to_string);
        for card in cards {
            let (is, must) = (found.items.get(card), self.items.get(card));
            if is != must {
                differences.push(format!("items: {card} has {}, expected {}", shown(is), shown(must)));
            }
        }
        if self.waiting != found.waiting {
            differences.push(format!("waiting sales: {}, expected {}", found.waiting, self.waiting));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_shows_every_fate() {
        let outcome = of_file(super::super::EXAMPLE).unwrap();
        let card = |store, item| Card { store, item };
        assert_eq!(
            outcome.items,
            BTreeMap::from([
                (card(4, 3), 500),
                (card(4, 12), 60),
                (card(7, 3), 35),
                (card(7, 12), 72),
                (card(9, 40_123_455), 24),
            ])
        );
        let reasons: Vec<_> = outcome.errors.iter().map(|(who, why)| format!("{who}: {why}")).collect();
        assert_eq!(
            reasons,
            [
                "59ddb534-337a-4342-9f89-d259f7c124d5: 9-3 does not exist!",
                "8ac5a643-8600-41b1-a87e-06ff6534c993: 4-12 stock amount would be less than 0: -15!",
                r#"line 10: value: "ten" is not a whole number from 1 to 2147483647"#,
                r#"line 9: date: "2026-04-01T08:31:17" has no offset from UTC (like 2019-04-14T03:47:13Z or 2019-04-14T05:47:13+02:00)"#,
            ]
        );
        assert_eq!((outcome.events.len(), outcome.transactions.len()), (12, 9));
    }

    #[test]
    fn what_differs_is_named() {
        let must = of_file(super::super::EXAMPLE).unwrap();
        assert_eq!(must.differences(&must), Vec::<String>::new());
        let mut found = must.clone();
        found.items.insert(Card { store: 4, item: 3 }, 501);
        found.waiting = 1;
        assert_eq!(must.differences(&found), ["items: 4-3 has 501, expected 500", "waiting sales: 1, expected 0"]);
    }
}
