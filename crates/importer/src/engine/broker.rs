//! The engine's part that minds the broker: failures of the producer, and silence.

use std::time::{Duration, Instant};

use anyhow::Result;
use runtime::kafka::ensure_topics;

use super::Engine;
use crate::import::Stage;

/// How long the broker may be silent before we say so.
const SILENCE: Duration = Duration::from_secs(2);

/// How often to look which partitions take nothing.
const LOOK: Duration = Duration::from_millis(500);

impl Engine {
    /// After a failure of the producer: whatever is not acknowledged is sent again.
    pub(super) fn recover(&mut self) -> Result<()> {
        let Some(recovery) = self.desk.recover()? else { return Ok(()) };
        tracing::warn!(
            "Kafka did not take everything ({}): what is not acknowledged is sent again in {} ms",
            recovery.reason,
            recovery.pause.as_millis()
        );
        if !recovery.pause.is_zero() {
            self.health.ill("kafka", recovery.reason);
            self.silent = true;
        }
        if recovery.no_topic {
            let kafka = &self.settings.kafka;
            let topics = kafka.all_topics();
            let made = self.tokio.block_on(ensure_topics(kafka, &topics, &self.health, &self.shutdown));
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            made?;
        }
        self.pause = Instant::now() + recovery.pause;
        self.heard = (Instant::now(), 0);
        for (chunk, code) in &recovery.refused {
            let Some(import) = self.imports.get_mut(&chunk.file) else { continue };
            if let Err(reason) = import.reading.is_refused(chunk, *code) {
                import.failed(reason);
            }
        }
        let mut failed = Vec::new();
        for (number, import) in &mut self.imports {
            if import.stage == Stage::Failed {
                import.reading.rewind(false);
                failed.push(*number);
                continue;
            }
            if import.reading.in_flight == 0 && import.reading.here.byte == import.reading.durable.byte {
                continue;
            }
            if import.stage != Stage::Reading {
                self.queue.push_back(*number);
            }
            import.rewind();
        }
        failed.into_iter().for_each(|number| self.give_up(number));
        Ok(())
    }

    /// Notices when Kafka is silent, and when it is back.
    pub(super) fn listen(&mut self) {
        let flight = self.desk.sender.flight();
        let (records, acknowledged) = (flight.records(), flight.acknowledged());
        let now = Instant::now();
        if records == 0 || acknowledged != self.heard.1 {
            if self.silent && acknowledged != self.heard.1 {
                self.silent = false;
                self.health.well("kafka");
            }
            self.heard = (now, acknowledged);
        } else if !self.silent && now.duration_since(self.heard.0) > SILENCE {
            self.silent = true;
            let broker = &self.settings.kafka.broker_url;
            self.health.ill("kafka", format!("waiting for Kafka at {broker}: {records} rows in flight"));
        }
        if now.duration_since(self.looked_at_partitions) > LOOK {
            self.looked_at_partitions = now;
            self.look_at_partitions(now);
        }
    }

    /// Says which partitions take nothing while others do.
    fn look_at_partitions(&mut self, now: Instant) {
        let stuck = self.desk.sender.stuck_partitions();
        self.desk.hold_back = !stuck.is_empty();
        match stuck.first() {
            None => self.health.well("partitions"),
            Some(first) => {
                let files = self.desk.sender.flight().files_waiting_since(now.checked_sub(SILENCE).unwrap_or(now));
                let more = if stuck.len() > 1 { format!(" (and {} more)", stuck.len() - 1) } else { String::new() };
                self.health.ill("partitions", format!("{first}{more}; {files} files wait for it"));
            }
        }
    }
}
