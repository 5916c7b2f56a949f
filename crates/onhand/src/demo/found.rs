//! What is there, read from the topics and the tables: the other side of [`super::expected`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use events::stock::Card;
use rdkafka::{Message, message::OwnedMessage};
use runtime::KafkaSettings;
use serde_json::Value;
use sqlx::{PgConnection, Row};
use tokio_util::sync::CancellationToken;

use super::{
    expected::Outcome,
    screen::{LABEL, Screen},
};
use crate::{
    readable::Style,
    reading::{From, Reader},
    terminal,
};

/// More than any example has: a user's files may follow, and need not be remembered.
const REMEMBERED: usize = 1000;
/// Records shown in a second: who drops a large file wants to see what happens, not all of it.
const AT_A_TIME: u64 = 40;

/// Records of both topics, as they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Records>>);

#[derive(Debug, Clone, Default)]
struct Records {
    events: Vec<String>,
    errors: BTreeSet<(String, String)>,
}

/// Shows the records of all topics on the screen as they come, until shutdown.
pub(crate) fn watch(settings: &KafkaSettings, screen: &Screen, shutdown: &CancellationToken) -> Result<Seen> {
    let mut reader = Reader::open(settings, &settings.all_topics(), From::Start)?;
    let (seen, screen, shutdown) = (Seen::default(), screen.clone(), shutdown.clone());
    let errors_topic = settings.errors_topic.clone();
    let ours = seen.clone();
    std::thread::Builder::new().name("watch".into()).spawn(move || {
        let width = terminal::width().map(|width| width.saturating_sub(LABEL));
        let style = Style { paint: screen.paint, width, time: false };
        let (mut since, mut shown, mut passed_over) = (Instant::now(), 0, 0_u64);
        while !shutdown.is_cancelled() {
            // an error passes when the broker is back
            let message = reader.next(Duration::from_millis(100)).ok().flatten();
            if since.elapsed() > Duration::from_secs(1) {
                if passed_over > 0 {
                    screen.say("onhand", &format!("... and {passed_over} more records of both topics"));
                }
                (since, shown, passed_over) = (Instant::now(), 0, 0);
            }
            let Some(message) = message else { continue };
            let is_error = message.topic() == errors_topic;
            ours.remember(&message, is_error);
            if shown == AT_A_TIME {
                passed_over += 1;
                continue;
            }
            shown += 1;
            screen.say(if is_error { "errors" } else { "events" }, &style.line(&message));
        }
    })?;
    Ok(seen)
}

impl Seen {
    fn remember(&self, message: &OwnedMessage, is_error: bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let payload = message.payload().unwrap_or_default();
        if seen.events.len() + seen.errors.len() >= REMEMBERED {
            return;
        }
        if !is_error {
            seen.events.push(String::from_utf8_lossy(payload).into_owned());
            return;
        }
        let letter: Value = serde_json::from_slice(payload).unwrap_or_default();
        let who = match (&letter["line"], letter["transaction_id"].as_str()) {
            (Value::Number(line), _) => format!("line {line}"),
            (_, id) => id.unwrap_or("?").to_owned(),
        };
        seen.errors.insert((who, letter["error"].as_str().unwrap_or("?").to_owned()));
    }
}

/// What is there now.
pub(crate) async fn now(seen: &Seen, connection: &mut PgConnection) -> Result<Outcome> {
    let items = sqlx::query("SELECT store_id, item_id, amount FROM items").fetch_all(&mut *connection).await?;
    let items = items.iter().map(|row| {
        let (store, item) = (row.try_get(0)?, row.try_get(1)?);
        Ok((Card { store, item }, row.try_get(2)?))
    });
    let items = items.collect::<Result<BTreeMap<_, _>, sqlx::Error>>()?;
    let transactions = sqlx::query_scalar("SELECT transaction_id FROM transactions").fetch_all(&mut *connection);
    let transactions = transactions.await?.into_iter().collect();
    let waiting = sqlx::query_scalar("SELECT count(*) FROM waiting_sales").fetch_one(&mut *connection).await?;
    let Records { mut events, errors } = seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    events.sort_unstable();
    Ok(Outcome { events, errors, transactions, items, waiting })
}

/// The `items` table, row by row.
pub(crate) async fn items(connection: &mut PgConnection) -> Result<Vec<Vec<i64>>> {
    let rows = sqlx::query("SELECT id::bigint, item_id, store_id, amount FROM items ORDER BY id");
    let rows = rows.fetch_all(connection).await?;
    let cells = rows.iter().map(|row| (0..4).map(|at| row.try_get(at)).collect::<Result<Vec<i64>, _>>());
    Ok(cells.collect::<Result<_, _>>()?)
}
