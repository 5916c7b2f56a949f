//! What is sorted: entries as bytes, whose order is the order that a pass needs. The fields that
//! order come first; numbers are written so that bytes compare as they do.

use events::{
    RefusalClass,
    stock::{Card, Movement, StockEvent},
};
use uuid::Uuid;

/// A record of the topic: partition and offset.
pub(super) type Place = (i32, i64);

/// Why stock refused a record, as the header of the dead letter names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    InvalidEvent,
    NotApplicable,
    ConflictingTransaction,
    StockOverflow,
    /// A sale that waited in vain: `InsufficientStock` or `UnknownCard`.
    GivenUp,
    /// None of these.
    Unknown,
}

impl Class {
    pub(super) fn of(name: &str) -> Class {
        match RefusalClass::from_name(name) {
            Some(RefusalClass::InvalidEvent) => Class::InvalidEvent,
            Some(RefusalClass::NotApplicable) => Class::NotApplicable,
            Some(RefusalClass::ConflictingTransaction) => Class::ConflictingTransaction,
            Some(RefusalClass::StockOverflow) => Class::StockOverflow,
            Some(RefusalClass::InsufficientStock | RefusalClass::UnknownCard) => Class::GivenUp,
            Some(RefusalClass::InvalidRow | RefusalClass::UnreadableRow) | None => Class::Unknown,
        }
    }

    fn from_code(code: u8) -> Class {
        match code {
            0 => Class::InvalidEvent,
            1 => Class::NotApplicable,
            2 => Class::ConflictingTransaction,
            3 => Class::StockOverflow,
            4 => Class::GivenUp,
            _ => Class::Unknown,
        }
    }
}

/// What is said of a record of the topic, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The waiting sale with this id came there.
    Waits(Uuid),
    /// It was refused.
    Refused(Class),
}

/// A claim of a record: by place, then in the order in which the claims were found.
pub(super) const CLAIM: usize = 37;

pub(super) fn claim(place: Place, order: u64, claim: Claim) -> [u8; CLAIM] {
    let (kind, id) = match claim {
        Claim::Waits(id) => (u8::MAX, id),
        Claim::Refused(class) => (class as u8, Uuid::nil()),
    };
    let mut writer = Writer::new();
    writer.place(place).i64(order as i64).u8(kind).bytes(id.as_bytes());
    writer.finish()
}

pub(super) fn read_claim(entry: &[u8; CLAIM]) -> (Place, Claim) {
    let mut reader = Reader(entry);
    let (place, _order) = (reader.place(), reader.i64());
    match reader.u8() {
        u8::MAX => (place, Claim::Waits(Uuid::from_bytes(reader.array()))),
        code => (place, Claim::Refused(Class::from_code(code))),
    }
}

/// An event without its id. The value is wider than an event's: a table may hold anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    /// None: the table has another word.
    pub(super) movement: Option<Movement>,
    /// Microseconds since 1970.
    pub(super) date: i64,
    pub(super) card: Card,
    pub(super) value: i64,
}

impl Content {
    pub(super) fn of(event: &StockEvent) -> Content {
        let StockEvent { movement, date, card, value, .. } = *event;
        Content { movement: Some(movement), date: date.0, card, value: i64::from(value) }
    }

    /// By how much it changes the amount of its card.
    pub(super) fn change(&self) -> i128 {
        let sign = if self.movement == Some(Movement::Incoming) { 1 } else { -1 };
        sign * i128::from(self.value)
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let movement = self.movement.map_or("unknown event", Movement::as_str);
        let date = events::Timestamp(self.date);
        write!(f, "{movement} of {} on {} at {date}", self.value, self.card)
    }
}

/// A table that has a row for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Journal,
    Waiting,
}

impl Table {
    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Journal => "transactions",
            Table::Waiting => "waiting_sales",
        }
    }
}

/// What has a transaction_id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A row.
    Row {
        table: Table,
        /// The record that it says it came from.
        origin: Option<Place>,
    },
    /// A record, and why it was refused, if it was.
    Record { place: Place, refused: Option<Class> },
}

/// Something with a transaction_id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occurrence {
    pub(super) id: Uuid,
    pub(super) source: Source,
    pub(super) content: Content,
    /// When Kafka took the record in, in microseconds since 1970, as far as known.
    pub(super) recorded_at: Option<i64>,
}

/// By id; of one id the rows, then the records by place, and those that were refused as conflicts at
/// the end, when everything that they could conflict with is known.
pub(super) const OCCURRENCE: usize = 71;
/// In the place of what is not there.
const NONE: i64 = i64::MIN;

impl Occurrence {
    pub(super) fn entry(&self) -> [u8; OCCURRENCE] {
        let no_place = (i32::MIN, NONE);
        let (kind, place, class) = match self.source {
            Source::Row { table: Table::Journal, origin } => (0, origin.unwrap_or(no_place), u8::MAX),
            Source::Row { table: Table::Waiting, origin } => (1, origin.unwrap_or(no_place), u8::MAX),
            Source::Record { place, refused: Some(class @ Class::ConflictingTransaction) } => (3, place, class as u8),
            Source::Record { place, refused } => (2, place, refused.map_or(u8::MAX, |class| class as u8)),
        };
        let Content { movement, date, card, value } = self.content;
        let mut writer = Writer::new();
        writer.bytes(self.id.as_bytes()).u8(kind).place(place).u8(class).u8(movement_code(movement));
        writer.i64(date).i64(card.store).i64(card.item).i64(value).i64(self.recorded_at.unwrap_or(NONE));
        writer.finish()
    }

    pub(super) fn read(entry: &[u8; OCCURRENCE]) -> Occurrence {
        let mut reader = Reader(entry);
        let id = Uuid::from_bytes(reader.array());
        let (kind, place, class) = (reader.u8(), reader.place(), reader.u8());
        let origin = (place.1 != NONE).then_some(place);
        let source = match kind {
            0 => Source::Row { table: Table::Journal, origin },
            1 => Source::Row { table: Table::Waiting, origin },
            _ => Source::Record { place, refused: (class != u8::MAX).then(|| Class::from_code(class)) },
        };
        let movement = movement_of(reader.u8());
        let date = reader.i64();
        let card = Card { store: reader.i64(), item: reader.i64() };
        let value = reader.i64();
        let recorded_at = Some(reader.i64()).filter(|at| *at != NONE);
        Occurrence { id, source, content: Content { movement, date, card, value }, recorded_at }
    }
}

/// What happened to a card, or is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The store of the card has a row. There is one for each store, before all of its cards.
    Store,
    /// A record, in the order of the topic.
    Record {
        place: Place,
        id: Uuid,
        movement: Movement,
        value: i32,
        became: Became,
        /// The same event is also in another partition: which came first is not known.
        elsewhere: bool,
    },
    /// A row of the journal that belongs to no record, with its change.
    Journal(i64),
    /// The card's row has this amount.
    Item(i64),
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    /// It has a row.
    Row(Table),
    /// It was accepted, but has no row, or one that says something else.
    Nothing,
    /// It waited in vain.
    GivenUp,
    /// It was refused since the amount would have become too large.
    Overflow,
}

/// By store, then item, then what happened in its order.
pub(super) const STEP: usize = 57;

pub(super) fn step(card: Card, step: Step) -> [u8; STEP] {
    let mut writer = Writer::new();
    match step {
        Step::Store => writer.i64(card.store).i64(i64::MIN).u8(0),
        Step::Record { place, id, movement, value, became, elsewhere } => {
            let became = match became {
                Became::Row(Table::Journal) => 0,
                Became::Row(Table::Waiting) => 1,
                Became::Nothing => 2,
                Became::GivenUp => 3,
                Became::Overflow => 4,
            };
            writer.i64(card.store).i64(card.item).u8(1).place(place).u8(became).u8(movement_code(Some(movement)));
            writer.i64(i64::from(value)).u8(u8::from(elsewhere)).bytes(id.as_bytes())
        }
        Step::Journal(change) => writer.i64(card.store).i64(card.item).u8(2).i64(change),
        Step::Item(amount) => writer.i64(card.store).i64(card.item).u8(3).i64(amount),
    };
    writer.finish()
}

pub(super) fn read_step(entry: &[u8; STEP]) -> (Card, Step) {
    let mut reader = Reader(entry);
    let card = Card { store: reader.i64(), item: reader.i64() };
    let step = match reader.u8() {
        0 => Step::Store,
        1 => {
            let (place, became, movement) = (reader.place(), reader.u8(), reader.u8());
            Step::Record {
                place,
                became: match became {
                    0 => Became::Row(Table::Journal),
                    1 => Became::Row(Table::Waiting),
                    2 => Became::Nothing,
                    3 => Became::GivenUp,
                    _ => Became::Overflow,
                },
                movement: if movement == 0 { Movement::Incoming } else { Movement::Sale },
                value: reader.i64() as i32,
                elsewhere: reader.u8() == 1,
                id: Uuid::from_bytes(reader.array()),
            }
        }
        2 => Step::Journal(reader.i64()),
        _ => Step::Item(reader.i64()),
    };
    (card, step)
}

fn movement_code(movement: Option<Movement>) -> u8 {
    match movement {
        Some(Movement::Incoming) => 0,
        Some(Movement::Sale) => 1,
        None => 2,
    }
}

fn movement_of(code: u8) -> Option<Movement> {
    match code {
        0 => Some(Movement::Incoming),
        1 => Some(Movement::Sale),
        _ => None,
    }
}

/// Fills an entry from its first byte on; what is not written is 0.
struct Writer<const N: usize> {
    entry: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Writer<N> {
        Writer { entry: [0; N], at: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Writer<N> {
        self.entry[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }

    fn u8(&mut self, byte: u8) -> &mut Writer<N> {
        self.bytes(&[byte])
    }

    /// The least number is all zeros.
    fn i64(&mut self, number: i64) -> &mut Writer<N> {
        self.bytes(&(number ^ i64::MIN).to_be_bytes())
    }

    fn place(&mut self, (partition, offset): Place) -> &mut Writer<N> {
        self.bytes(&(partition ^ i32::MIN).to_be_bytes()).i64(offset)
    }

    fn finish(self) -> [u8; N] {
        self.entry
    }
}

/// Reads what a [`Writer`] wrote.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (array, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *array
    }

    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.array())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.array()) ^ i64::MIN
    }

    fn place(&mut self) -> Place {
        (i32::from_be_bytes(self.array()) ^ i32::MIN, self.i64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let claims = [Claim::Waits(Uuid::from_u128(7)), Claim::Refused(Class::GivenUp), Claim::Refused(Class::Unknown)];
        for of in claims {
            assert_eq!(read_claim(&claim((3, 1 << 40), 5, of)), ((3, 1 << 40), of));
        }
        let card = Card { store: i64::MAX, item: -3 };
        let place = (i32::MAX, i64::MAX);
        let became = [Became::Row(Table::Journal), Became::Row(Table::Waiting), Became::Nothing, Became::Overflow];
        let record = |became| Step::Record {
            place,
            id: Uuid::max(),
            movement: Movement::Sale,
            value: i32::MAX,
            became,
            elsewhere: became == Became::Nothing,
        };
        for of in became.map(record).into_iter().chain([Step::Journal(-5), Step::Item(i64::MIN)]) {
            assert_eq!(read_step(&step(card, of)), (card, of));
        }
        for source in [
            Source::Row { table: Table::Journal, origin: Some(place) },
            Source::Row { table: Table::Waiting, origin: None },
            Source::Record { place, refused: None },
            Source::Record { place, refused: Some(Class::ConflictingTransaction) },
        ] {
            let content = Content { movement: None, date: -1, card, value: i64::MIN };
            let of = Occurrence { id: Uuid::max(), source, content, recorded_at: Some(-1) };
            assert_eq!(Occurrence::read(&of.entry()), of);
        }
    }

    #[test]
    fn bytes_order_as_the_passes_need_them() {
        let card = |store, item| Card { store, item };
        let record = |place| Step::Record {
            place,
            id: Uuid::nil(),
            movement: Movement::Sale,
            value: 1,
            became: Became::Nothing,
            elsewhere: false,
        };
        let steps = [
            step(card(-1, 5), Step::Item(1)),
            step(card(4, 9), Step::Store),
            step(card(4, -2), Step::Item(1)),
            step(card(4, 3), record((0, 9))),
            step(card(4, 3), record((0, 10))),
            step(card(4, 3), record((1, 0))),
            step(card(4, 3), Step::Journal(-1)),
            step(card(4, 3), Step::Item(0)),
            step(card(4, 4), record((0, 0))),
            step(card(300, 0), Step::Store),
        ];
        assert!(steps.is_sorted());
        let content = Content { movement: None, date: 0, card: card(0, 0), value: 0 };
        let of = |id, source| Occurrence { id: Uuid::from_u128(id), source, content, recorded_at: None }.entry();
        let occurrences = [
            of(1, Source::Row { table: Table::Journal, origin: Some((9, 9)) }),
            of(1, Source::Row { table: Table::Waiting, origin: None }),
            of(1, Source::Record { place: (0, 7), refused: Some(Class::GivenUp) }),
            of(1, Source::Record { place: (0, 8), refused: None }),
            of(1, Source::Record { place: (0, 1), refused: Some(Class::ConflictingTransaction) }),
            of(2, Source::Row { table: Table::Journal, origin: None }),
        ];
        assert!(occurrences.is_sorted());
    }
}
