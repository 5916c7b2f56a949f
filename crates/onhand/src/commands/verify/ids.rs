//! The pass by transaction_id: which records count, which repeat another one, which rows belong to
//! them. Pure. Hands on to the pass by card what happens to a card.
//!
//! A repeat has the same card as what it repeats, and so the same partition and a known order, unless
//! records of a card are in several partitions. A conflict may be on any card: its order is not known,
//! and it is enough that what was refused has something to conflict with.

use anyhow::Result;
use uuid::Uuid;

use super::{
    entry::{Became, Class, Content, Occurrence, Place, STEP, Source, Step, Table, step},
    report::{Difference, Differences, Kind},
};

/// Goes through all occurrences, sorted, and gives each step of a card to `emit`.
pub(super) struct Ids<E> {
    emit: E,
    id: Option<Uuid>,
    rows: Vec<Row>,
    /// Events that count for something, in the order of their first records.
    events: Vec<Event>,
    /// Repeats of records.
    pub(super) duplicates: u64,
    pub(super) differences: Differences,
}

/// A row with this id: one of each table at most.
struct Row {
    table: Table,
    content: Content,
    origin: Option<Place>,
    recorded_at: Option<i64>,
    /// The record at its origin has this id and content: when Kafka recorded it.
    found: Option<Option<i64>>,
}

/// The records of one content. Those that were refused as a conflict or an overflow are not here.
struct Event {
    content: Content,
    /// The first record that was accepted, and the partition of the last one.
    accepted: Option<(Place, i32)>,
    /// The accepted record that the event's row names.
    named: Option<Place>,
    /// How many were accepted.
    count: u64,
    given_up: bool,
    /// The first record was accepted while none had been given up: it was applied, or waits, since.
    certain: Option<Place>,
}

impl<E: FnMut([u8; STEP]) -> Result<()>> Ids<E> {
    pub(super) fn new(emit: E) -> Ids<E> {
        let (rows, events, differences) = (Vec::new(), Vec::new(), Differences::default());
        Ids { emit, id: None, rows, events, duplicates: 0, differences }
    }

    pub(super) fn occurrence(&mut self, occurrence: &Occurrence) -> Result<()> {
        let Occurrence { id, source, content, recorded_at } = *occurrence;
        if self.id != Some(id) {
            self.finish_id()?;
            self.id = Some(id);
        }
        match source {
            Source::Row { table, origin } => {
                self.rows.push(Row { table, content, origin, recorded_at, found: None });
                Ok(())
            }
            Source::Record { place, refused: None } => {
                self.accepted(place, content, recorded_at);
                Ok(())
            }
            Source::Record { place, refused: Some(Class::ConflictingTransaction) } => {
                // all else with this id has come before
                let counts = |event: &Event| event.given_up || event.accepted.is_some();
                if !self.events.iter().any(|event| event.content != content && counts(event)) {
                    let what = || format!("was refused as a conflict, but no other event has the id {id}");
                    self.differences.add(Kind::WronglyRefused, || Difference::of_record(place, what()).id(id));
                }
                Ok(())
            }
            Source::Record { place, refused: Some(class) } => self.in_vain(place, id, content, class),
        }
    }

    /// All occurrences have come. Returns what differs and the number of duplicates.
    pub(super) fn finish(mut self) -> Result<(u64, Differences)> {
        self.finish_id()?;
        Ok((self.duplicates, self.differences))
    }

    fn accepted(&mut self, place: Place, content: Content, recorded_at: Option<i64>) {
        let mut named = None;
        for row in &mut self.rows {
            if row.origin == Some(place) && row.content == content {
                row.found = Some(recorded_at);
                named = Some(place);
            }
        }
        let event = event_of(&mut self.events, content);
        event.count += 1;
        event.named = event.named.or(named);
        event.accepted = Some(event.accepted.map_or((place, place.0), |(first, _)| (first, place.0)));
        if !event.given_up {
            event.certain.get_or_insert(place);
        }
    }

    /// A record that waited in vain, or overflowed.
    fn in_vain(&mut self, place: Place, id: Uuid, content: Content, class: Class) -> Result<()> {
        // records come by place: what is certain and of the same partition came before
        let same_partition = |before: &&Event| before.certain.is_some_and(|certain| certain.0 == place.0);
        let became = if class == Class::GivenUp { Became::GivenUp } else { Became::Overflow };
        if let Some(before) = self.events.iter().find(same_partition) {
            let refused = if became == Became::GivenUp { "given up" } else { "refused as an overflow" };
            let what = || format!("was {refused}, though {id} was accepted before as {}", before.content);
            self.differences.add(Kind::WronglyRefused, || Difference::of_record(place, what()).id(id));
        }
        if became == Became::GivenUp {
            event_of(&mut self.events, content).given_up = true;
        }
        self.record(place, id, content, became, false)
    }

    fn finish_id(&mut self) -> Result<()> {
        let Some(id) = self.id else { return Ok(()) };
        let (rows, mut events) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.events));
        let has_row = |event: &Event| rows.iter().any(|row| row.content == event.content);
        // of a sale that was given up, and has no row, the accepted records are repeats while it waited
        events.iter().for_each(|event| self.duplicates += event.count);
        events.retain(|event| event.accepted.is_some() && (!event.given_up || has_row(event)));
        self.duplicates -= events.len() as u64;
        let living = events.iter().position(has_row).unwrap_or(0);
        let living = (living < events.len()).then(|| events.remove(living));
        if let Some(living) = &living {
            for (place, other) in events.iter().filter_map(|event| Some((event.accepted?.0, event))) {
                let known = format!("transaction {id} is known already as {}", living.content);
                let what = || format!("had to be refused: {known}, and cannot also be {}", other.content);
                self.differences.add(Kind::NotRefused, || Difference::of_record(place, what()).id(id));
            }
        }
        self.compare(id, rows, living)
    }

    /// The rows of an id, and the event that must have one.
    fn compare(&mut self, id: Uuid, rows: Vec<Row>, living: Option<Event>) -> Result<()> {
        let mut missing = living.as_ref();
        let mut became = Became::Nothing;
        for row in rows {
            let (table, card) = (row.table.name(), row.content.card);
            let differs = |what: &str| Difference::new(format!("{table}: {id} {what}")).id(id).card(card);
            match missing.take() {
                None => {
                    let what = "is there, but no event on the topic accounts for it";
                    self.differences.add(Kind::RowWithoutEvent, || differs(what));
                }
                Some(event) if event.content != row.content => {
                    self.differences.add(Kind::OtherContent, || differs("has other content than its event"));
                }
                Some(_) => {
                    became = Became::Row(row.table);
                    if let Some(what) = origin_differs(&row) {
                        self.differences.add(Kind::WrongOrigin, || differs(&what));
                    }
                }
            }
            if row.table == Table::Journal && became != Became::Row(Table::Journal) {
                let change = row.content.change().clamp(i64::MIN.into(), i64::MAX.into()) as i64;
                (self.emit)(step(card, Step::Journal(change)))?;
            }
        }
        let Some(Event { content, accepted: Some((first, last)), named, given_up, .. }) = living else { return Ok(()) };
        if missing.is_some() {
            let movement = content.movement.map_or("event", |movement| movement.as_str());
            let what = || format!("{movement} of {id} on {} is nowhere (record {}:{})", content.card, first.0, first.1);
            self.differences.add(Kind::MissingRow, || Difference::new(what()).at(first).id(id).card(content.card));
        }
        // of one that was given up and came again, the row knows which record it was
        let place = if given_up { named.unwrap_or(first) } else { first };
        self.record(place, id, content, became, first.0 != last)
    }

    fn record(&mut self, place: Place, id: Uuid, content: Content, became: Became, elsewhere: bool) -> Result<()> {
        // of a record, both are always there: it was decoded as an event
        let (Some(movement), Ok(value)) = (content.movement, i32::try_from(content.value)) else { return Ok(()) };
        (self.emit)(step(content.card, Step::Record { place, id, movement, value, became, elsewhere }))
    }
}

fn event_of(events: &mut Vec<Event>, content: Content) -> &mut Event {
    let at = events.iter().position(|event| event.content == content).unwrap_or_else(|| {
        events.push(Event { content, accepted: None, named: None, count: 0, given_up: false, certain: None });
        events.len() - 1
    });
    &mut events[at]
}

/// Whether the row came from the record that it names.
fn origin_differs(row: &Row) -> Option<String> {
    let (partition, offset) = row.origin?;
    match (row.found, row.recorded_at) {
        // whether the record of a sale that waits is there is checked when the topic is read
        (None, _) if row.table == Table::Waiting => None,
        (None, _) => Some(format!("is not the event of record {partition}:{offset}, which it says it came from")),
        (Some(there), Some(says)) if there != Some(says) => {
            let shown = |at: Option<i64>| at.map_or("no time".to_owned(), |at| events::Timestamp(at).to_string());
            let (says, there) = (shown(Some(says)), shown(there));
            Some(format!("says that record {partition}:{offset} was recorded at {says}, the topic says {there}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use events::stock::{Card, Movement};

    use super::*;
    use crate::verify::entry::read_step;

    const CARD: Card = Card { store: 4, item: 3 };

    fn content(movement: Movement, value: i64) -> Content {
        Content { movement: Some(movement), date: 0, card: CARD, value }
    }

    fn sale(value: i64) -> Content {
        content(Movement::Sale, value)
    }

    fn row(table: Table, content: Content) -> (Source, Content) {
        (Source::Row { table, origin: None }, content)
    }

    fn record(place: Place, refused: Option<Class>, content: Content) -> (Source, Content) {
        (Source::Record { place, refused }, content)
    }

    /// The offset of a record, and what became of it; neither for a row without a record.
    type StepOf = (Option<i64>, Option<Became>);

    /// What the pass says of the occurrences of one id: duplicates, the steps by the places of their
    /// records, and the differences.
    fn pass(occurrences: &[(Source, Content)]) -> (u64, Vec<StepOf>, Vec<String>) {
        let occurrence = |&(source, content): &(Source, Content)| {
            Occurrence { id: Uuid::nil(), source, content, recorded_at: Some(1) }.entry()
        };
        let mut entries: Vec<_> = occurrences.iter().map(occurrence).collect();
        entries.sort_unstable();
        let mut steps = Vec::new();
        let mut ids = Ids::new(|entry| {
            steps.push(match read_step(&entry).1 {
                Step::Record { place, became, .. } => (Some(place.1), Some(became)),
                _ => (None, None),
            });
            Ok(())
        });
        for entry in entries {
            ids.occurrence(&Occurrence::read(&entry)).expect("taken");
        }
        let (duplicates, differences) = ids.finish().expect("finished");
        (duplicates, steps, differences.lines())
    }

    const APPLIED: Option<Became> = Some(Became::Row(Table::Journal));
    const GIVEN_UP: Option<Became> = Some(Became::GivenUp);
    const CONFLICT: Option<Class> = Some(Class::ConflictingTransaction);
    const IN_VAIN: Option<Class> = Some(Class::GivenUp);

    #[test]
    fn repeats_and_conflicts_of_an_applied_event_change_nothing() {
        let occurrences = [
            row(Table::Journal, sale(5)),
            record((0, 1), None, sale(5)),
            record((0, 2), CONFLICT, sale(6)),
            record((0, 3), None, sale(5)),
        ];
        assert_eq!(pass(&occurrences), (1, vec![(Some(1), APPLIED)], vec![]));
    }

    #[test]
    fn a_sale_that_was_given_up_had_repeats_while_it_waited() {
        let occurrences = [record((0, 1), IN_VAIN, sale(5)), record((0, 2), None, sale(5))];
        assert_eq!(pass(&occurrences), (1, vec![(Some(1), GIVEN_UP)], vec![]));
        // until it came again, and was applied
        let again = [row(Table::Journal, sale(5)), occurrences[0], occurrences[1], record((0, 3), None, sale(5))];
        assert_eq!(pass(&again), (1, vec![(Some(1), GIVEN_UP), (Some(2), APPLIED)], vec![]));
        // where the row says which record it was, it is that one
        let named = Source::Row { table: Table::Journal, origin: Some((0, 3)) };
        let again = [(named, sale(5)), again[1], again[2], again[3]];
        assert_eq!(pass(&again), (1, vec![(Some(1), GIVEN_UP), (Some(3), APPLIED)], vec![]));
        // or another event took its id
        let other = [row(Table::Journal, sale(6)), occurrences[0], occurrences[1], record((0, 3), None, sale(6))];
        assert_eq!(pass(&other), (1, vec![(Some(1), GIVEN_UP), (Some(3), APPLIED)], vec![]));
        // which had been refused while the first one waited
        let refused = [other[0], other[1], record((0, 2), CONFLICT, sale(6)), other[3]];
        assert_eq!(pass(&refused), (0, vec![(Some(1), GIVEN_UP), (Some(3), APPLIED)], vec![]));
    }

    #[test]
    fn what_was_refused_or_accepted_wrongly_is_named() {
        let lonely = [record((0, 7), CONFLICT, sale(5))];
        let message = "record 0:7 was refused as a conflict, but no other event has the id ";
        assert!(pass(&lonely).2[0].starts_with(message));
        let same = [row(Table::Journal, sale(5)), record((0, 1), None, sale(5)), record((0, 7), CONFLICT, sale(5))];
        assert!(pass(&same).2[0].starts_with(message));

        let applied = [row(Table::Journal, sale(5)), record((0, 1), None, sale(5))];
        let given_up = [applied[0], applied[1], record((0, 2), IN_VAIN, sale(6))];
        assert!(pass(&given_up).2[0].starts_with("record 0:2 was given up, though "), "{:?}", pass(&given_up));
        // of another partition it is not known which came first
        let elsewhere = [applied[0], applied[1], record((1, 2), IN_VAIN, sale(6))];
        assert_eq!(pass(&elsewhere).2, [""; 0]);

        let both = [applied[0], record((0, 0), None, sale(6)), applied[1]];
        let (duplicates, steps, differences) = pass(&both);
        assert_eq!((duplicates, steps), (0, vec![(Some(1), APPLIED)]));
        assert!(differences[0].starts_with("record 0:0 had to be refused: transaction "), "{differences:?}");
    }

    #[test]
    fn rows_are_compared_with_their_event() {
        let id = Uuid::nil();
        let event = record((0, 1), None, sale(5));
        let nothing = vec![(Some(1), Some(Became::Nothing))];
        let message = format!("sale of {id} on 4-3 is nowhere (record 0:1)");
        assert_eq!(pass(&[event]), (0, nothing, vec![message]));
        let steps = vec![(None, None), (Some(1), Some(Became::Nothing))];
        let message = format!("transactions: {id} has other content than its event");
        assert_eq!(pass(&[row(Table::Journal, sale(6)), event]), (0, steps, vec![message]));
        let message = format!("waiting_sales: {id} is there, but no event on the topic accounts for it");
        let two = [row(Table::Journal, sale(5)), row(Table::Waiting, sale(5)), event];
        assert_eq!(pass(&two), (0, vec![(Some(1), APPLIED)], vec![message]));
    }

    #[test]
    fn a_row_must_come_from_the_record_that_it_names() {
        let events = [record((0, 1), None, sale(5)), record((0, 2), None, sale(5)), record((0, 3), CONFLICT, sale(6))];
        let says = |origin, recorded_at| {
            let source = Source::Row { table: Table::Journal, origin: Some(origin) };
            let row = Row { table: Table::Journal, content: sale(5), origin: None, recorded_at, found: None };
            let mut ids = Ids::new(|_| Ok(()));
            let id = Uuid::nil();
            ids.occurrence(&Occurrence { id, source, content: row.content, recorded_at }).expect("taken");
            for (source, content) in events {
                ids.occurrence(&Occurrence { id, source, content, recorded_at: Some(1) }).expect("taken");
            }
            ids.finish().expect("finished").1.lines()
        };
        assert_eq!(says((0, 1), None), [""; 0]);
        assert_eq!(says((0, 2), Some(1)), [""; 0]);
        let message = |place| format!("is not the event of record {place}, which it says it came from");
        for (place, shown) in [((0, 3), "0:3"), ((0, 9), "0:9"), ((1, 1), "1:1")] {
            assert!(says(place, None)[0].ends_with(&message(shown)), "{:?}", says(place, None));
        }
        let message = "says that record 0:1 was recorded at 1970-01-01T00:00:00.000002Z, the topic says 1970-01-01T00:00:00.000001Z";
        assert!(says((0, 1), Some(2))[0].ends_with(message), "{:?}", says((0, 1), Some(2)));
    }
}
