//! A projection of the tests' own. A record is a word: a number, which 1,000 is divided by, or what is
//! to go wrong.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::anyhow;
use events::{Message, Refusal, RefusalClass, Timestamp};
use projection::{ApplyError, Batch, BatchOutput, Decoded, Due, Projection, Record};
use sqlx::PgConnection;

pub const TABLES: &str = "
    CREATE TABLE quotients (
        id bigint GENERATED ALWAYS AS IDENTITY, partition int, record_offset bigint, number bigint, quotient bigint,
        word text
    );
    CREATE INDEX quotients_word ON quotients (word);
    CREATE TABLE alarms (partition int, at bigint);
    CREATE TABLE rung (at bigint, now bigint, applied bigint, CONSTRAINT loud CHECK (at >= 0));";

/// What the test has told the projection, and what it was called with.
#[derive(Default)]
pub struct Controls {
    /// Where alarms are published.
    errors_topic: String,
    /// While set, [`Word::Held`] cannot be applied for the time being.
    pub hold: AtomicBool,
    /// Every call of `apply`: the attempt, and the offsets of the records.
    pub calls: Mutex<Vec<(u32, Vec<i64>)>>,
    /// How often records have failed that fail a number of times.
    failures: Mutex<HashMap<(i32, i64), u32>>,
    /// Numbers of records in committed batches.
    pub committed: Mutex<Vec<usize>>,
}

impl Controls {
    /// Alarms are published on `errors_topic`.
    pub fn new(errors_topic: &str) -> Controls {
        Controls { errors_topic: errors_topic.to_owned(), ..Controls::default() }
    }

    fn fails_again(&self, place: (i32, i64), times: u32) -> bool {
        let mut failures = self.failures.lock().expect("no panic");
        let failed = failures.entry(place).or_default();
        *failed += 1;
        *failed <= times
    }

    /// Attempts of the calls with this record.
    pub fn attempts(&self, offset: i64) -> Vec<u32> {
        let calls = self.calls.lock().expect("no panic");
        calls.iter().filter(|(_, offsets)| offsets.contains(&offset)).map(|(attempt, _)| *attempt).collect()
    }
}

/// A record, decoded.
#[derive(Debug, Clone)]
pub enum Word {
    /// 1,000 is divided by it.
    Number(i64),
    /// The service's rules refuse it.
    Refused,
    /// Not while [`Controls::hold`] is set.
    Held,
    /// Not the first so many times, for a reason that passes.
    Transient(u32),
    /// Not the first so many times, for what was assumed.
    Stale(u32),
    /// Sets an alarm for so many milliseconds from now.
    Alarm(i64),
    /// Takes so many milliseconds.
    Slow(u64),
    /// Goes into an index as it is.
    Long(String),
    /// Panics when it is applied.
    Panic,
    /// Applying it does not end.
    Stuck,
}

pub struct Division(pub Arc<Controls>);

impl Projection for Division {
    const SERVICE: &'static str = "division";
    type Event = Word;
    type Cache = ();
    type Summary = usize;

    fn decode(&self, record: &Record<'_>) -> Result<Decoded<Word>, Refusal> {
        let text = std::str::from_utf8(record.payload).expect("text");
        let words: Vec<_> = text.split(' ').collect();
        let times = || words[1].parse().expect("a number");
        let event = match words[0] {
            "refused" => Word::Refused,
            "held" => Word::Held,
            "transient" => Word::Transient(times()),
            "stale" => Word::Stale(times()),
            "alarm" => Word::Alarm(times().into()),
            "slow" => Word::Slow(times().into()),
            "long" => Word::Long(words[1].to_owned()),
            "panic" => Word::Panic,
            "stuck" => Word::Stuck,
            "panic-in-decode" => panic!("as the test asked for"),
            number => {
                let no_number =
                    |_| Refusal { error: format!("{number} is no number"), class: RefusalClass::InvalidEvent };
                Word::Number(number.parse().map_err(no_number)?)
            }
        };
        Ok(Decoded::new(event))
    }

    async fn apply(
        &self,
        tx: &mut PgConnection,
        (): &mut (),
        batch: Batch<'_, Word>,
        now: Timestamp,
    ) -> Result<BatchOutput<usize>, ApplyError> {
        let (messages, summary) = match batch.due {
            Some(due) => self.ring(tx, &batch, due, now).await?,
            None if batch.events.is_empty() => (Vec::new(), 0),
            None => self.divide(tx, &batch, now).await?,
        };
        let wake_at: Option<i64> = sqlx::query_scalar("SELECT min(at) FROM alarms WHERE partition = $1")
            .bind(batch.source.partition)
            .fetch_one(tx)
            .await?;
        Ok(BatchOutput { messages, summary, wake_at: wake_at.map(Timestamp) })
    }

    fn committed(&self, summary: usize, _: Duration) {
        self.0.committed.lock().expect("no panic").push(summary);
    }
}

impl Division {
    /// Alarms ring; one before 1970 cannot.
    async fn ring(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_, Word>,
        due: Due<'_>,
        now: Timestamp,
    ) -> Result<(Vec<Message>, usize), ApplyError> {
        let ring = if due.refuse.is_some() { "false" } else { "true" };
        let sql = format!(
            "WITH due AS (DELETE FROM alarms WHERE ctid IN (
                 SELECT ctid FROM alarms WHERE partition = $1 AND at <= $2 ORDER BY at LIMIT $3) RETURNING at)
             INSERT INTO rung SELECT at, $4, (SELECT count(*) FROM quotients WHERE partition = $1) FROM due WHERE {ring}"
        );
        let query =
            sqlx::query(&sql).bind(batch.source.partition).bind(due.caught_up_at.0).bind(due.limit as i64).bind(now.0);
        let rung = query.execute(tx).await?.rows_affected() as usize;
        let payload = match due.refuse {
            Some(why) => serde_json::json!({ "error": why }),
            None => serde_json::json!({ "rung": rung }),
        };
        let message = Message {
            topic: self.0.errors_topic.clone(),
            key: None,
            payload: payload.to_string().into_bytes(),
            ce_id: format!("{}-{}", batch.source.partition, due.caught_up_at.0),
            headers: Vec::new(),
        };
        Ok((vec![message], rung))
    }

    async fn divide(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_, Word>,
        now: Timestamp,
    ) -> Result<(Vec<Message>, usize), ApplyError> {
        let all = batch.events.iter().map(|record| batch.offset(record)).collect();
        self.0.calls.lock().expect("no panic").push((batch.attempt, all));
        let (mut offsets, mut numbers, mut long, mut messages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in batch.events {
            let offset = batch.offset(record);
            let fails_again = |times| self.0.fails_again((batch.source.partition, offset), times);
            match &record.event {
                Word::Number(_) => {}
                Word::Held if self.0.hold.load(Ordering::Relaxed) => {
                    return Err(ApplyError::Transient(anyhow!("it is held")));
                }
                Word::Transient(times) if fails_again(*times) => {
                    return Err(ApplyError::Transient(anyhow!("it will pass")));
                }
                Word::Stale(times) if fails_again(*times) => return Err(ApplyError::Stale),
                Word::Panic => panic!("as the test asked for"),
                Word::Stuck => pending().await,
                Word::Refused => {
                    let refusal =
                        Refusal { error: "the rules forbid it".into(), class: RefusalClass::InsufficientStock };
                    messages.push(batch.refuse(record, &refusal));
                    continue;
                }
                Word::Alarm(millis) => {
                    let alarm = sqlx::query("INSERT INTO alarms VALUES ($1, $2)").bind(batch.source.partition);
                    alarm.bind(now.0 + millis * 1_000).execute(&mut *tx).await?;
                }
                Word::Slow(millis) => {
                    sqlx::query("SELECT pg_sleep($1)").bind(*millis as f64 / 1e3).execute(&mut *tx).await?;
                }
                Word::Held | Word::Transient(_) | Word::Stale(_) | Word::Long(_) => {}
            }
            offsets.push(offset);
            numbers.push(if let Word::Number(number) = record.event { number } else { 1 });
            long.push(if let Word::Long(text) = &record.event { text.as_str() } else { "" });
        }
        sqlx::query(
            "INSERT INTO quotients (partition, record_offset, number, quotient, word)
             SELECT $1, record_offset, number, 1000 / number, word
             FROM unnest($2::bigint[], $3::bigint[], $4::text[])
                  WITH ORDINALITY AS c (record_offset, number, word, place) ORDER BY place",
        )
        .bind(batch.source.partition)
        .bind(offsets)
        .bind(numbers)
        .bind(long)
        .execute(tx)
        .await?;
        Ok((messages, batch.events.len()))
    }
}
