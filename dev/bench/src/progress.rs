//! What was committed, over time.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Runtime;

use crate::{measured::Process, wait, world::Round};

/// How many events were committed at which time since the process was started. The first sample is
/// the first commit seen, the last one the end of the topic.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    samples: Vec<(Duration, u64)>,
}

impl Progress {
    /// Watches a service that was started at `began` until it has applied `total` events; looks
    /// every `pause`.
    pub(crate) fn watch(
        tokio: &Runtime,
        round: &Round,
        service: &mut Process,
        began: Instant,
        total: u64,
        pause: Duration,
    ) -> Result<Progress> {
        let mut committed = Committed::connect(tokio, round)?;
        let mut samples: Vec<(Duration, u64)> = Vec::new();
        wait::until(pause, || {
            service.ensure_running()?;
            let count = committed.events(tokio)?;
            if count > samples.last().map_or(0, |(_, last)| *last) {
                samples.push((began.elapsed(), count));
            }
            Ok(count >= total)
        })?;
        Ok(Progress { samples })
    }

    /// From the start of the process to the first commit: joining the group, the first assignment,
    /// the first batch.
    pub(crate) fn start_up(&self) -> Duration {
        self.samples.first().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// From the start of the process to the last commit.
    pub(crate) fn total(&self) -> Duration {
        self.samples.last().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// Of these counts at these times, in the order of the times.
    pub(crate) fn of(samples: Vec<(Duration, u64)>) -> Progress {
        Progress { samples }
    }

    /// Events a second from the first commit to the last, without the events of the first commit.
    pub(crate) fn rate_after_start_up(&self) -> Result<f64> {
        self.rate_between(0, u64::MAX)
    }

    /// Events a second in the second half of the events.
    pub(crate) fn steady_rate(&self) -> Result<f64> {
        let half = self.samples.last().map_or(0, |(_, count)| count / 2);
        self.rate_between(half, u64::MAX)
    }

    /// Events a second from the commit of the event `from` to that of `to`, as far as they were
    /// seen; between two samples the rate counts as constant.
    pub(crate) fn rate_between(&self, from: u64, to: u64) -> Result<f64> {
        let first = self.samples.first().context("nothing was committed")?.1;
        let last = self.samples.last().context("nothing was committed")?.1;
        let (from, to) = (from.max(first), to.min(last));
        ensure!(from < to, "everything was in one commit: the rate needs more rows");
        Ok((to - from) as f64 / (self.time_of(to) - self.time_of(from)))
    }

    /// When so many events were committed, in seconds.
    fn time_of(&self, count: u64) -> f64 {
        let after = self.samples.partition_point(|(_, seen)| *seen < count).min(self.samples.len() - 1);
        let (at, seen) = self.samples[after];
        let Some((at_before, seen_before)) = after.checked_sub(1).map(|before| self.samples[before]) else {
            return at.as_secs_f64();
        };
        let share = count.saturating_sub(seen_before) as f64 / (seen - seen_before) as f64;
        at_before.as_secs_f64() + share.min(1.0) * (at - at_before).as_secs_f64()
    }

    /// `seconds,events` a line.
    pub(crate) fn csv(&self) -> String {
        let mut text = String::from("seconds,events\n");
        for (at, count) in &self.samples {
            let _ = writeln!(text, "{:.3},{count}", at.as_secs_f64());
        }
        text
    }
}

/// A connection that asks how many records of the topic are committed.
struct Committed(PgConnection);

impl Committed {
    fn connect(tokio: &Runtime, round: &Round) -> Result<Committed> {
        let options = runtime::postgres::options(&round.postgres, "bench");
        Ok(Committed(tokio.block_on(PgConnection::connect_with(&options))?))
    }

    /// None yet if the service has not created its tables.
    fn events(&mut self, tokio: &Runtime) -> Result<u64> {
        let sum = sqlx::query_scalar::<_, i64>("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets");
        let count = tokio.block_on(sum.fetch_one(&mut self.0)).unwrap_or(0);
        Ok(count.try_into()?)
    }
}

/// Waits until the service's offsets have reached the topic's end.
pub(crate) fn wait_until_applied(tokio: &Runtime, round: &Round, total: u64) -> Result<()> {
    let mut committed = Committed::connect(tokio, round)?;
    wait::until(wait::PAUSE, || Ok(committed.events(tokio)? >= total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_leave_out_the_first_commit_and_are_interpolated_between_commits() {
        let at = Duration::from_secs;
        let progress = Progress { samples: vec![(at(5), 100), (at(6), 300), (at(8), 400), (at(9), 700)] };
        assert_eq!(progress.start_up(), at(5));
        assert_eq!(progress.total(), at(9));
        assert_eq!(progress.rate_after_start_up().unwrap(), 150.0);
        assert_eq!(progress.steady_rate().unwrap(), 350.0 / 2.0);
        assert_eq!(progress.rate_between(0, 300).unwrap(), 200.0);
        assert_eq!(progress.rate_between(350, 550).unwrap(), 200.0 / 1.5);
        assert!(progress.rate_between(700, 800).is_err());
    }
}
