//! Exponential backoff: pauses between attempts, each twice as long as the one before.

use std::time::{Duration, Instant};

const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// When to try again something that fails.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    failures: u32,
    due: Option<Instant>,
}

impl Backoff {
    /// An attempt has failed; returns when to try again.
    pub(crate) fn failed(&mut self, now: Instant) -> Instant {
        let pause = pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        *self.due.insert(now + pause)
    }

    /// A long attempt has failed: starts the current pause again.
    pub(crate) fn pause_again(&mut self, now: Instant) {
        if let Some(failures) = self.failures.checked_sub(1) {
            self.due = Some(now + pause(failures));
        }
    }

    /// Whether the next attempt is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// When the next attempt is due; `None` if nothing has failed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Makes the next attempt due by `soon` at the latest.
    pub(crate) fn retry_by(&mut self, soon: Instant) {
        self.due = self.due.map(|due| due.min(soon));
    }
}

fn pause(failures: u32) -> Duration {
    MIN_PAUSE.saturating_mul(1 << failures.min(10)).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(now));
        let pauses: Vec<_> = (0..9).map(|_| (backoff.failed(now) - now).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert!(!backoff.is_due(now) && backoff.is_due(now + MAX_PAUSE));
        backoff.pause_again(now + MAX_PAUSE);
        assert_eq!(backoff.due(), Some(now + MAX_PAUSE + MAX_PAUSE));
        backoff.retry_by(now + MIN_PAUSE);
        assert_eq!(backoff.due(), Some(now + MIN_PAUSE));
    }
}
