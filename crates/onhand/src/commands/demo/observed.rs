//! What can be seen of the system: its records, as they come, and the stock on hand.

use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::Message;
use runtime::KafkaSettings;
use sqlx::{PgConnection, Row};
use tokio_util::sync::CancellationToken;

use super::screen::{LABEL, Screen};
use crate::{
    output::{record_line::Style, terminal},
    system::topic_reader::{From, TopicReader},
};

/// Records shown in a second: who drops a large file wants to see what happens, not all of it.
const AT_A_TIME: u64 = 40;

/// Shows the records of all topics on the screen as they come, until shutdown.
pub(crate) fn watch(settings: &KafkaSettings, screen: &Screen, shutdown: &CancellationToken) -> Result<()> {
    let mut reader = TopicReader::open(settings, &settings.all_topics(), From::Beginning)?;
    let (screen, shutdown) = (screen.clone(), shutdown.clone());
    let errors_topic = settings.errors_topic.clone();
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
            if shown == AT_A_TIME {
                passed_over += 1;
                continue;
            }
            shown += 1;
            screen.say(if message.topic() == errors_topic { "errors" } else { "events" }, &style.line(&message));
        }
    })?;
    Ok(())
}

/// The `items` table, row by row.
pub(crate) async fn items(connection: &mut PgConnection) -> Result<Vec<Vec<i64>>> {
    let rows = sqlx::query("SELECT id::bigint, item_id, store_id, amount FROM items ORDER BY id");
    let rows = rows.fetch_all(connection).await?;
    let cells = rows.iter().map(|row| (0..4).map(|at| row.try_get(at)).collect::<Result<Vec<i64>, _>>());
    Ok(cells.collect::<Result<_, _>>()?)
}
