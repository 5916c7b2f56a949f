//! What a batch did: log lines for people, counters for Prometheus.

use std::time::Duration;

use events::stock::{Movement, StockEvent};
use uuid::Uuid;

use crate::rules::{Decision, Released};

/// Batches that do up to this many things are logged line by line, larger ones in one summary.
const LINE_BY_LINE: usize = 20;

/// What a batch did.
#[derive(Debug, Default)]
pub struct Summary {
    incoming: u64,
    sales: u64,
    waiting: u64,
    duplicates: u64,
    refused: u64,
    /// What is logged line by line: the transaction, and what became of it.
    lines: Vec<(Uuid, String)>,
}

impl Summary {
    /// Counts what became of an event.
    pub(crate) fn count(&mut self, event: &StockEvent, decision: &Decision) {
        let line = match decision {
            Decision::Applied { amount, created } => {
                let done = match (event.movement, created) {
                    (Movement::Incoming, true) => "created",
                    (Movement::Incoming, false) => "increased",
                    (Movement::Sale, _) => "decreased",
                };
                match event.movement {
                    Movement::Incoming => self.incoming += 1,
                    Movement::Sale => self.sales += 1,
                }
                self.line(|| format!("{done} item: {}, current amount: {amount}", event.card))
            }
            Decision::Waits => {
                self.waiting += 1;
                self.line(|| format!("waiting: a sale of {} on {} exceeds the stock", event.value, event.card))
            }
            Decision::Duplicate => {
                self.duplicates += 1;
                self.line(|| {
                    format!("duplicate: {} on {} is applied already or waits", event.transaction_id, event.card)
                })
            }
            Decision::Refused(refusal) => {
                self.refused += 1;
                self.line(|| format!("refused: {}", refusal.error))
            }
        };
        self.lines.extend(line.map(|line| (event.transaction_id, line)));
    }

    /// Counts a sale that waited and now fits.
    pub(crate) fn count_released(&mut self, released: &Released) {
        let line =
            self.line(|| format!("no longer waiting: a sale of {} on {}", released.sale.value, released.sale.card));
        self.lines.extend(line.map(|line| (released.sale.transaction_id, line)));
        self.count(&released.sale, &Decision::Applied { amount: released.amount, created: false });
    }

    /// The first lines, in case that there are no more.
    fn line(&self, line: impl FnOnce() -> String) -> Option<String> {
        (self.lines.len() < LINE_BY_LINE).then(line)
    }

    fn total(&self) -> u64 {
        self.incoming + self.sales + self.waiting + self.duplicates + self.refused
    }

    /// To the log and the metrics.
    pub(crate) fn report(&self, took: Duration) {
        let counts = [
            ("incoming", self.incoming),
            ("sale", self.sales),
            ("waiting", self.waiting),
            ("duplicate", self.duplicates),
            ("refused", self.refused),
        ];
        for (result, count) in counts {
            metrics::counter!("onhand_stock_events_total", "result" => result).increment(count);
        }
        if self.total() <= LINE_BY_LINE as u64 {
            for (transaction_id, line) in &self.lines {
                tracing::info!(service = "stock", %transaction_id, "{line}");
            }
        } else {
            tracing::info!(
                service = "stock",
                events = self.total(),
                elapsed_ms = took.as_millis() as u64,
                "{}",
                self.summary(took)
            );
        }
    }

    fn summary(&self, took: Duration) -> String {
        let mut summary = format!(
            "applied {} events in {} ms: {} incoming, {} sales",
            self.total(),
            took.as_millis(),
            self.incoming,
            self.sales
        );
        for (count, what) in [(self.waiting, "waiting"), (self.duplicates, "duplicates"), (self.refused, "refused")] {
            if count > 0 {
                summary.push_str(&format!(", {count} {what}"));
            }
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_is_one_line() {
        let summary = Summary { incoming: 7_100, sales: 2_890, waiting: 10, ..Summary::default() };
        assert_eq!(
            summary.summary(Duration::from_millis(160)),
            "applied 10000 events in 160 ms: 7100 incoming, 2890 sales, 10 waiting"
        );
    }
}
