//! Stock events: goods come in, goods are sold.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, de};
use uuid::Uuid;

use crate::{Column, CsvForm, EventType, Kind, Refusal, RefusalClass, Timestamp, timestamp::NotATimestamp};

/// The greatest value of one event.
pub const MAX_VALUE: i64 = i32::MAX as i64;

/// Stock events: records of the columns of [`CSV`].
pub const EVENT_TYPE: EventType =
    EventType { name: "stock", topic: ("KAFKA_EVENTS_TOPIC", "events"), payload: || CSV.schema(), csv: Some(&CSV) };

/// `transaction_id,event_type,date,store_number,item_number,value`, keyed by card.
pub const CSV: CsvForm = CsvForm {
    columns: &[
        Column {
            name: "transaction_id",
            kind: Kind::Uuid,
            required: true,
            description: "The event's identity: sent twice, it counts once.",
        },
        Column {
            name: "event_type",
            kind: Kind::OneOf(&["incoming", "sale"]),
            required: true,
            description: "Whether goods came in or were sold.",
        },
        Column {
            name: "date",
            kind: Kind::DateTime,
            required: true,
            description: "When it happened, RFC 3339 with an offset.",
        },
        Column {
            name: "store_number",
            kind: Kind::Integer { min: 0, max: i64::MAX },
            required: true,
            description: "The store.",
        },
        Column {
            name: "item_number",
            kind: Kind::Integer { min: 0, max: i64::MAX },
            required: true,
            description: "The item; an EAN fits.",
        },
        Column {
            name: "value",
            kind: Kind::Integer { min: 1, max: MAX_VALUE },
            required: true,
            description: "How many pieces.",
        },
    ],
    key: &[3, 4],
};

/// What happened to a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Movement {
    /// Goods came in.
    Incoming,
    /// Goods were sold.
    Sale,
}

impl Movement {
    /// The word in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Movement::Incoming => "incoming",
            Movement::Sale => "sale",
        }
    }

    /// The movement of a word in a record.
    pub fn from_word(word: &str) -> Option<Movement> {
        match word {
            "incoming" => Some(Movement::Incoming),
            "sale" => Some(Movement::Sale),
            _ => None,
        }
    }
}

/// One item at one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Card {
    /// The store, 0 or more.
    pub store: i64,
    /// The item, 0 or more.
    pub item: i64,
}

impl fmt::Display for Card {
    /// `5-12`, as in the Kafka key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.store, self.item)
    }
}

/// A record of the events topic, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StockEvent {
    /// Its identity.
    pub transaction_id: Uuid,
    /// What happened.
    pub movement: Movement,
    /// When it happened.
    pub date: Timestamp,
    /// To which card.
    pub card: Card,
    /// How many pieces, 1 to 2^31-1.
    pub value: i32,
}

impl StockEvent {
    /// The event as JSON, the way the importer writes it.
    pub fn to_json(&self) -> String {
        let StockEvent { transaction_id, movement, date, card, value } = self;
        format!(
            r#"{{"transaction_id":"{transaction_id}","event_type":"{}","date":"{date}","store_number":"{}","item_number":"{}","value":"{value}"}}"#,
            movement.as_str(),
            card.store,
            card.item,
        )
    }

    /// Reads a record's payload: the six fields as strings, or as numbers where they are numbers;
    /// further fields are ignored. The refusal names what is wrong.
    pub fn decode(payload: &[u8]) -> Result<StockEvent, Refusal> {
        let refuse = |error: String| Refusal { error, class: RefusalClass::InvalidEvent };
        if payload.is_empty() {
            return Err(refuse("the record is empty".into()));
        }
        let wire: Wire<'_> = serde_json::from_slice(payload)
            .map_err(|error| refuse(format!("the record is not a stock event: {error}")))?;
        let bad = |column: usize, found: &str| {
            let column = &CSV.columns[column];
            let why = column.kind.check(found.as_bytes()).err().unwrap_or_else(|| "is not valid".into());
            refuse(format!("{}: {} {why}", column.name, crate::csv::row::shown(found)))
        };
        let transaction_id = wire.transaction_id.trim();
        let date = wire.date.trim();
        let word = wire.event_type.trim();
        let number = |column: usize, number: &Number<'_>| -> Result<i64, Refusal> {
            let Kind::Integer { min, max } = CSV.columns[column].kind else { unreachable!("a number's column") };
            match number {
                Number::Integer(number) if (min..=max).contains(number) => Ok(*number),
                Number::Integer(number) => Err(bad(column, &number.to_string())),
                Number::Text(text) => match crate::csv::kind::integer(text.trim().as_bytes()) {
                    Some(number) if (min..=max).contains(&number) => Ok(number),
                    _ => Err(bad(column, text.trim())),
                },
            }
        };
        Ok(StockEvent {
            // the hyphenated form alone, as in the schema
            transaction_id: match Uuid::try_parse(transaction_id) {
                Ok(id) if transaction_id.len() == 36 => id,
                _ => return Err(bad(0, transaction_id)),
            },
            movement: Movement::from_word(word).ok_or_else(|| bad(1, word))?,
            date: Timestamp::parse(date.as_bytes()).map_err(|_: NotATimestamp| bad(2, date))?,
            card: Card { store: number(3, &wire.store_number)?, item: number(4, &wire.item_number)? },
            value: number(5, &wire.value)? as i32,
        })
    }
}

impl StockEvent {
    /// Reads a payload that is, byte for byte, what [`StockEvent::to_json`] writes; none for any
    /// other, which [`StockEvent::decode`] may still read. Most records are such, and this is some
    /// times faster.
    pub fn decode_canonical(payload: &[u8]) -> Option<StockEvent> {
        let rest = payload.strip_prefix(b"{\"transaction_id\":\"")?;
        let (id, rest) = rest.split_at_checked(36)?;
        if id.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let rest = rest.strip_prefix(b"\",\"event_type\":\"")?;
        let (movement, rest) = match rest.strip_prefix(b"incoming") {
            Some(rest) => (Movement::Incoming, rest),
            None => (Movement::Sale, rest.strip_prefix(b"sale")?),
        };
        let rest = rest.strip_prefix(b"\",\"date\":\"")?;
        // whole seconds of UTC: other spellings of an instant are not written
        let (date, rest) = rest.split_at_checked(20)?;
        if date[10] != b'T' || date[19] != b'Z' {
            return None;
        }
        let (store, rest) = canonical_number(rest.strip_prefix(b"\",\"store_number\":\"")?)?;
        let (item, rest) = canonical_number(rest.strip_prefix(b"\",\"item_number\":\"")?)?;
        let (value, rest) = canonical_number(rest.strip_prefix(b"\",\"value\":\"")?)?;
        if rest != b"\"}" || !(1..=MAX_VALUE).contains(&value) {
            return None;
        }
        Some(StockEvent {
            transaction_id: Uuid::try_parse_ascii(id).ok()?,
            movement,
            date: Timestamp::parse(date).ok()?,
            card: Card { store, item },
            value: value as i32,
        })
    }
}

/// Digits without leading zeros, up to the next quote.
fn canonical_number(text: &[u8]) -> Option<(i64, &[u8])> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    let number = crate::csv::kind::integer(digits)?;
    (length == 1 || digits[0] != b'0').then_some((number, rest))
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    transaction_id: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    date: Cow<'a, str>,
    #[serde(borrow)]
    store_number: Number<'a>,
    #[serde(borrow)]
    item_number: Number<'a>,
    #[serde(borrow)]
    value: Number<'a>,
}

/// A JSON string or whole number.
enum Number<'a> {
    Integer(i64),
    Text(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Number<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Number<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or a string of digits")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Number::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Number::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Number::Integer(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                i64::try_from(number).map(Number::Integer).map_err(|_| E::custom(format!("{number} is too large")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
