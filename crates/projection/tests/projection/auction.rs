//! A second projection of the tests' own, which uses every part of the trait: two event types on one
//! topic, of nested records; keys, headers and timestamps; a cache; refusals; messages to another
//! topic; timed work; a migration of its own.

use std::{collections::HashMap, time::Duration};

use events::{EventType, Message, Refusal, RefusalClass, Timestamp};
use projection::{ApplyError, Batch, BatchOutput, Decoded, Projection, Received, Record};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row, migrate::Migrator};
use time::OffsetDateTime;

pub static MIGRATIONS: Migrator = sqlx::migrate!("tests/migrations");

/// A lot is offered until a moment.
pub const OFFER: EventType = EventType {
    name: "offer",
    topic: ("AUCTIONS_TOPIC", "auctions"),
    payload: || {
        json!({
            "type": "object",
            "required": ["offer"],
            "properties": { "offer": {
                "type": "object",
                "required": ["closes_at", "terms"],
                "properties": {
                    "closes_at": { "type": "string", "format": "date-time" },
                    "terms": { "type": "object", "required": ["least"], "properties": { "least": { "type": "integer" } } }
                }
            } }
        })
    },
    csv: None,
};

/// Somebody offers an amount for a lot. Who it is, is in the header `bidder`.
pub const BID: EventType = EventType {
    name: "bid",
    topic: ("AUCTIONS_TOPIC", "auctions"),
    payload: || json!({ "type": "object", "required": ["bid"], "properties": { "bid": { "type": "integer" } } }),
    csv: None,
};

#[derive(Debug, Clone)]
pub struct Event {
    /// The record's key.
    lot: i64,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Offer { closes_at: Timestamp, least: i64 },
    Bid { bidder: String, amount: i64 },
}

pub struct Auction {
    pub results_topic: String,
}

/// A lot while it is open.
#[derive(Debug, Clone)]
pub struct Lot {
    closes_at: Timestamp,
    least: i64,
    highest: Option<(i64, String)>,
    closed: bool,
}

impl Projection for Auction {
    const SERVICE: &'static str = "auction";
    type Event = Event;
    type Cache = HashMap<i64, Lot>;
    type Summary = ();

    fn decode(&self, record: &Record<'_>) -> Result<Decoded<Event>, Refusal> {
        let refuse = |error: &str| Refusal { error: error.to_owned(), class: RefusalClass::InvalidEvent };
        let value: Value = serde_json::from_slice(record.payload).map_err(|_| refuse("the record is not JSON"))?;
        let text = |bytes: Option<&[u8]>| bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        let lot = text(record.key).and_then(|key| key.parse().ok()).ok_or_else(|| refuse("the key names no lot"))?;
        if let Some(amount) = value["bid"].as_i64() {
            let bidder = text(record.header("bidder")).ok_or_else(|| refuse("the bid has no bidder"))?;
            let event = Event { lot, kind: Kind::Bid { bidder, amount } };
            // as its producer wrote it, so that batches need not keep it
            let is_canonical = encode(&event) == record.payload;
            return Ok(if is_canonical { Decoded::encodable(event, encode) } else { Decoded::new(event) });
        }
        let closes_at = value["offer"]["closes_at"].as_str().and_then(|text| Timestamp::parse(text.as_bytes()).ok());
        match (closes_at, value["offer"]["terms"]["least"].as_i64()) {
            (Some(closes_at), Some(least)) => Ok(Decoded::new(Event { lot, kind: Kind::Offer { closes_at, least } })),
            _ => Err(refuse("the record is neither an offer nor a bid")),
        }
    }

    async fn apply(
        &self,
        tx: &mut PgConnection,
        lots: &mut HashMap<i64, Lot>,
        batch: Batch<'_, Event>,
        _: Timestamp,
    ) -> Result<BatchOutput<()>, ApplyError> {
        let mut output = BatchOutput::new(());
        if let Some(due) = batch.due {
            lots.clear();
            output.messages = self.close(tx, batch.source.partition, due.caught_up_at, due.limit).await?;
        }
        for record in batch.events {
            if !lots.contains_key(&record.event.lot)
                && let Some(lot) = read(tx, record.event.lot).await?
            {
                lots.insert(record.event.lot, lot);
            }
            match decide(lots.get(&record.event.lot), &batch, record) {
                Ok(lot) => {
                    write(tx, batch.source.partition, record.event.lot, &lot).await?;
                    lots.insert(record.event.lot, lot);
                }
                Err(error) => {
                    let refusal = Refusal { error, class: RefusalClass::NotApplicable };
                    output.messages.push(batch.refuse(record, &refusal));
                }
            }
        }
        let next = "SELECT min(closes_at) FROM lots WHERE partition = $1 AND NOT closed";
        let next: Option<OffsetDateTime> = sqlx::query_scalar(next).bind(batch.source.partition).fetch_one(tx).await?;
        output.wake_at = next.map(Timestamp::from);
        Ok(output)
    }

    fn committed(&self, (): (), _: Duration) {}
}

impl Auction {
    /// Closes lots whose time has come, and says who gets them.
    async fn close(
        &self,
        tx: &mut PgConnection,
        partition: i32,
        until: Timestamp,
        limit: usize,
    ) -> sqlx::Result<Vec<Message>> {
        let rows = sqlx::query(
            "UPDATE lots SET closed = true WHERE lot IN (
                 SELECT lot FROM lots WHERE partition = $1 AND NOT closed AND closes_at <= $2 ORDER BY closes_at LIMIT $3)
             RETURNING lot, highest, bidder",
        )
        .bind(partition)
        .bind(OffsetDateTime::from(until))
        .bind(limit as i64)
        .fetch_all(tx)
        .await?;
        let result = |row: &sqlx::postgres::PgRow| {
            let (lot, highest): (i64, Option<i64>) = (row.get("lot"), row.get("highest"));
            let winner: Option<String> = row.get("bidder");
            Message {
                topic: self.results_topic.clone(),
                key: Some(lot.to_string().into_bytes()),
                payload: json!({ "lot": lot, "winner": winner, "amount": highest }).to_string().into_bytes(),
                ce_id: format!("lot-{lot}"),
                headers: Vec::new(),
            }
        };
        Ok(rows.iter().map(result).collect())
    }
}

/// The rules: the lot after an event, or why it is refused.
fn decide(lot: Option<&Lot>, batch: &Batch<'_, Event>, record: &Received<Event>) -> Result<Lot, String> {
    let number = record.event.lot;
    match (&record.event.kind, lot) {
        (Kind::Offer { closes_at, least }, None) => {
            Ok(Lot { closes_at: *closes_at, least: *least, highest: None, closed: false })
        }
        (Kind::Offer { .. }, Some(_)) => Err(format!("lot {number} is offered already")),
        (Kind::Bid { .. }, None) => Err(format!("there is no lot {number}")),
        (Kind::Bid { bidder, amount }, Some(lot)) => {
            let is_late = batch.timestamp(record).is_none_or(|at| at > lot.closes_at);
            let least = lot.highest.as_ref().map_or(lot.least, |(highest, _)| highest + 1);
            match (lot.closed || is_late, *amount < least) {
                (true, _) => Err(format!("lot {number} is closed")),
                (false, true) => Err(format!("{amount} is less than {least}")),
                (false, false) => Ok(Lot { highest: Some((*amount, bidder.clone())), ..lot.clone() }),
            }
        }
    }
}

fn encode(event: &Event) -> Vec<u8> {
    match &event.kind {
        Kind::Bid { amount, .. } => json!({ "bid": amount }).to_string().into_bytes(),
        Kind::Offer { .. } => unreachable!("only bids are encoded"),
    }
}

async fn read(tx: &mut PgConnection, lot: i64) -> sqlx::Result<Option<Lot>> {
    let row = sqlx::query("SELECT * FROM lots WHERE lot = $1").bind(lot).fetch_optional(tx).await?;
    Ok(row.map(|row| Lot {
        closes_at: row.get::<OffsetDateTime, _>("closes_at").into(),
        least: row.get("least"),
        highest: row.get::<Option<i64>, _>("highest").zip(row.get("bidder")),
        closed: row.get("closed"),
    }))
}

async fn write(tx: &mut PgConnection, partition: i32, number: i64, lot: &Lot) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO lots (lot, partition, closes_at, least) VALUES ($1, $2, $3, $4)
         ON CONFLICT (lot) DO UPDATE SET highest = $5, bidder = $6",
    )
    .bind(number)
    .bind(partition)
    .bind(OffsetDateTime::from(lot.closes_at))
    .bind(lot.least)
    .bind(lot.highest.as_ref().map(|(amount, _)| *amount))
    .bind(lot.highest.as_ref().map(|(_, bidder)| bidder.as_str()))
    .execute(tx)
    .await?;
    Ok(())
}
