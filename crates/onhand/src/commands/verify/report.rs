//! What verify found: how much was compared, and what differs; for people and as JSON.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use events::stock::Card;
use serde::Serialize;
use uuid::Uuid;

use super::entry::Place;
use crate::output::terminal::Paint;

/// Differences of one kind that are shown; the others are only counted.
const EXAMPLES: usize = 10;

/// What can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// An accepted event has a row in no table.
    MissingRow,
    /// A row has no event.
    RowWithoutEvent,
    /// A row and its event do not say the same.
    OtherContent,
    /// A row is in the journal but had to wait, or waits but had to be applied.
    WrongTable,
    /// A row names a record that it did not come from.
    WrongOrigin,
    /// A card has another amount than the events say.
    Amount,
    /// A card has another amount than its journal sums up to.
    JournalSum,
    /// A store has no items, or items have no store.
    Store,
    /// A record was accepted that had to be refused.
    NotRefused,
    /// A record was refused that had to be accepted.
    WronglyRefused,
    /// A record was refused that is not on the topic.
    RefusalWithoutRecord,
    /// A dead letter does not say what it must.
    DeadLetter,
    /// A receipt does not agree with the topics.
    Receipt,
    /// The numbers of records do not add up.
    Count,
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Kind::MissingRow => "accepted events that have no row",
            Kind::RowWithoutEvent => "rows without an event",
            Kind::OtherContent => "rows with other content than their event",
            Kind::WrongTable => "rows in the wrong table",
            Kind::WrongOrigin => "rows that name a wrong record",
            Kind::Amount => "items whose amount is not what the events say",
            Kind::JournalSum => "items whose amount is not the sum of their journal",
            Kind::Store => "stores",
            Kind::NotRefused => "records that had to be refused",
            Kind::WronglyRefused => "records that were refused without a reason",
            Kind::RefusalWithoutRecord => "refusals of records that are not there",
            Kind::DeadLetter => "dead letters",
            Kind::Receipt => "receipts",
            Kind::Count => "counts",
        }
    }
}

/// One thing that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    card: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
}

impl Difference {
    pub(crate) fn new(message: impl Into<String>) -> Difference {
        Difference { message: message.into(), ..Difference::default() }
    }

    /// Of a record: the message begins with its place.
    pub(super) fn of_record(place: Place, message: impl std::fmt::Display) -> Difference {
        Difference::new(format!("record {}:{} {message}", place.0, place.1)).at(place)
    }

    pub(super) fn at(self, (partition, offset): Place) -> Difference {
        Difference { partition: Some(partition), offset: Some(offset), ..self }
    }

    pub(super) fn id(self, id: Uuid) -> Difference {
        Difference { transaction_id: Some(id), ..self }
    }

    pub(super) fn card(self, card: Card) -> Difference {
        Difference { card: Some(card.to_string()), ..self }
    }
}

/// What differs: of each kind the first few, and how many there are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Differences(BTreeMap<Kind, OfKind>);

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct OfKind {
    count: u64,
    examples: Vec<Difference>,
}

impl Differences {
    pub(crate) fn add(&mut self, kind: Kind, difference: impl FnOnce() -> Difference) {
        let of_kind = self.0.entry(kind).or_default();
        of_kind.count += 1;
        if of_kind.examples.len() < EXAMPLES {
            of_kind.examples.push(difference());
        }
    }

    pub(super) fn append(&mut self, other: Differences) {
        for (kind, OfKind { count, examples }) in other.0 {
            let of_kind = self.0.entry(kind).or_default();
            let room = EXAMPLES.saturating_sub(of_kind.examples.len());
            of_kind.examples.extend(examples.into_iter().take(room));
            of_kind.count += count;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.values().map(|of_kind| of_kind.count).sum()
    }

    /// A line each, and one for those of a kind that are not shown.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, OfKind { count, examples }) in &self.0 {
            lines.extend(examples.iter().map(|example| example.message.clone()));
            let more = count - examples.len() as u64;
            if more > 0 {
                lines.push(format!("and {} more: {}", grouped(more), kind.plural()));
            }
        }
        lines
    }
}

/// What was compared. Everything is as of one moment of the tables.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The events topic.
    pub(crate) topic: String,
    /// Its records up to where stock has read.
    pub(crate) records: u64,
    /// Rows of the journal.
    pub(crate) journal: u64,
    /// Records that repeat another one.
    pub(crate) duplicates: u64,
    /// Sales that wait.
    pub(crate) waiting: u64,
    /// Refused records.
    pub(crate) refused: u64,
    /// Rows of `items`.
    pub(crate) cards: u64,
    /// Refused rows of files.
    pub(crate) refused_rows: u64,
    /// Records after where stock has read.
    pub(crate) not_applied: u64,
    /// Cards with records in several partitions, whose order is not known.
    pub(crate) mixed: u64,
    /// The import directory, and what its receipts say; none where there is no such directory.
    pub(crate) directory: PathBuf,
    pub(crate) receipts: Option<Receipts>,
    pub(crate) differences: Differences,
}

/// What the receipts say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Receipts {
    /// How many there are.
    pub(crate) count: u64,
    /// Rows that were accepted, over all of them.
    pub(crate) accepted: u64,
    /// Refused rows on the errors topic that no receipt tells of.
    pub(crate) refused_rows_without: u64,
}

impl Report {
    pub(crate) fn holds(&self) -> bool {
        self.differences.count() == 0
    }

    /// The sum of what became of the records must be the records.
    pub(super) fn add_up(&mut self) {
        let accounted = self.journal + self.duplicates + self.waiting + self.refused;
        if accounted != self.records && self.holds() {
            let records = self.records;
            let what = format!("{records} records, of which {accounted} are in a table, duplicates or refused");
            self.differences.add(Kind::Count, || Difference::new(what));
        }
    }

    /// For programs: one object.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let differences = self.differences.0.iter().map(|(kind, OfKind { count, examples })| {
            serde_json::json!({ "kind": kind, "count": count, "examples": examples })
        });
        serde_json::json!({
            "holds": self.holds(),
            "topic": self.topic,
            "records": self.records,
            "journal": self.journal,
            "duplicates": self.duplicates,
            "waiting": self.waiting,
            "refused": self.refused,
            "cards": self.cards,
            "refused_rows": self.refused_rows,
            "records_not_applied": self.not_applied,
            "cards_in_several_partitions": self.mixed,
            "import_directory": self.directory.display().to_string(),
            "receipts": self.receipts,
            "difference_count": self.differences.count(),
            "differences": differences.collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(crate) fn print(&self, paint: Paint, out: &mut impl Write) -> io::Result<()> {
        let mut line = |number: u64, text: &str| writeln!(out, "{:>12} {text}", grouped(number));
        let (record, are) = (word(self.records, "record", "records"), word(self.records, "is", "are"));
        line(self.records, &format!("{record} of topic {}, up to where stock has read, {are}", self.topic))?;
        line(self.journal, "in the journal (transactions)")?;
        line(self.duplicates, word(self.duplicates, "duplicate", "duplicates"))?;
        line(self.waiting, "waiting (waiting_sales)")?;
        line(self.refused, "refused, each with its reason")?;
        line(self.cards, word(self.cards, "card compared (items)", "cards compared (items)"))?;
        let rows = word(self.refused_rows, "row", "rows");
        line(self.refused_rows, &format!("refused {rows} of files, each with its file, line and byte"))?;
        let shown = self.directory.display();
        if let Some(Receipts { count, refused_rows_without, .. }) = self.receipts {
            line(count, &format!("{} of files in {shown}", word(count, "receipt", "receipts")))?;
            if refused_rows_without > 0 {
                let have = word(refused_rows_without, "refused row has", "refused rows have");
                let why = "of `onhand import`, of files still being read, or the receipt was removed";
                line(refused_rows_without, &format!("{have} no receipt: {why}"))?;
            }
        }
        if self.not_applied > 0 {
            let are = word(self.not_applied, "record is", "records are");
            line(self.not_applied, &format!("{are} not applied yet, and not compared"))?;
        }
        if self.mixed > 0 {
            let have = word(self.mixed, "card has", "cards have");
            line(self.mixed, &format!("{have} records in several partitions: the order of these is not checked"))?;
        }
        if self.receipts.is_none() {
            writeln!(out, "{:>12} no receipts: {shown} does not exist; files are not checked", "")?;
        }
        for difference in self.differences.lines() {
            writeln!(out, "{} {difference}", paint.red("differs:"))?;
        }
        let count = self.differences.count();
        if count == 0 {
            return writeln!(out, "{}", paint.green("everything holds"));
        }
        let differ = word(count, "difference", "differences");
        writeln!(out, "{}", paint.red(format!("{} {differ}", grouped(count))))
    }
}

/// 1,000,000
pub(super) fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// 1 row, 2 rows: the word for so many.
fn word<'a>(number: u64, one: &'a str, more: &'a str) -> &'a str {
    if number == 1 { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_differences_of_a_kind_are_counted_and_hide_no_other_kind() {
        let mut differences = Differences::default();
        for number in 0..1_012 {
            differences.add(Kind::Amount, || Difference::new(format!("amount {number}")));
        }
        differences.add(Kind::Store, || Difference::new("store"));
        let mut more = Differences::default();
        more.add(Kind::Amount, || Difference::new("another amount"));
        differences.append(more);
        let mut lines: Vec<_> = (0..10).map(|number| format!("amount {number}")).collect();
        lines.extend(["and 1,003 more: items whose amount is not what the events say".into(), "store".into()]);
        assert_eq!((differences.lines(), differences.count()), (lines, 1_014));
    }
}
