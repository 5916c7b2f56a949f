//! The part of the engine that watches Kafka: failures of the producer, a silent broker, partitions that
//! accept nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use runtime::kafka::ensure_topics;

use super::{Engine, millis};
use crate::engine::active_file::Stage;

/// Report the broker as unhealthy after this long without an acknowledgement.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to check which partitions accept nothing.
const PARTITION_CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl Engine {
    /// After a failure of the producer: sends again whatever is not acknowledged.
    pub(super) fn recover(&mut self) -> Result<()> {
        let Some(recovery) = self.sink.recover()? else { return Ok(()) };
        tracing::warn!(
            reason = recovery.reason,
            pause_ms = millis(recovery.pause),
            "Kafka did not accept everything: sending again what is not acknowledged"
        );
        if !recovery.pause.is_zero() {
            self.health.unhealthy("kafka", recovery.reason);
            self.is_silent = true;
        }
        if recovery.no_topic {
            let kafka = &self.settings.kafka;
            let topics = kafka.all_topics();
            let created = self.tokio.block_on(ensure_topics(kafka, &topics, &self.health, &self.shutdown));
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            created?;
        }
        self.send_after = Instant::now() + recovery.pause;
        self.last_acknowledged = (Instant::now(), 0);
        for (chunk, code) in &recovery.refused {
            let Some(file) = self.active.get_mut(&chunk.file) else { continue };
            if let Err(reason) = file.reader.narrow_down_refusal(chunk, *code) {
                file.failed(reason);
            }
        }
        let mut failed = Vec::new();
        for (number, file) in &mut self.active {
            if file.stage == Stage::Failed {
                file.reader.rewind(false);
                failed.push(*number);
                continue;
            }
            if file.reader.in_flight == 0 && file.reader.position.byte == file.reader.acknowledged.byte {
                continue;
            }
            if file.stage != Stage::Reading {
                self.queue.push_back(*number);
            }
            file.rewind();
        }
        failed.into_iter().for_each(|number| self.give_up(number));
        Ok(())
    }

    /// Reports when Kafka becomes silent, and when it is back.
    pub(super) fn check_kafka(&mut self) {
        let flight = self.sink.producer.in_flight();
        let (records, acknowledged) = (flight.records(), flight.acknowledged());
        let now = Instant::now();
        if records == 0 || acknowledged != self.last_acknowledged.1 {
            if self.is_silent && acknowledged != self.last_acknowledged.1 {
                self.is_silent = false;
                self.health.healthy("kafka");
            }
            self.last_acknowledged = (now, acknowledged);
        } else if !self.is_silent && now.duration_since(self.last_acknowledged.0) > SILENCE_TIMEOUT {
            self.is_silent = true;
            let broker = &self.settings.kafka.broker_url;
            self.health.unhealthy("kafka", format!("waiting for Kafka at {broker}: {records} rows in flight"));
        }
        if now.duration_since(self.partitions_checked) > PARTITION_CHECK_INTERVAL {
            self.partitions_checked = now;
            self.check_partitions(now);
        }
    }

    /// Reports which partitions accept nothing while others do.
    fn check_partitions(&mut self, now: Instant) {
        let stuck = self.sink.producer.stuck_partitions();
        self.sink.hold_back = !stuck.is_empty();
        match stuck.first() {
            None => self.health.healthy("partitions"),
            Some(first) => {
                let files =
                    self.sink.producer.in_flight().files_waiting_since(now.checked_sub(SILENCE_TIMEOUT).unwrap_or(now));
                let more = if stuck.len() > 1 { format!(" (and {} more)", stuck.len() - 1) } else { String::new() };
                self.health.unhealthy("partitions", format!("{first}{more}; {files} files wait for it"));
            }
        }
    }
}
