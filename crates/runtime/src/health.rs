//! What a service says about itself: each part (Kafka, Postgres, ...) is well or says why not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// While a part is ill, its reasons are logged at most this often.
const REMIND: Duration = Duration::from_secs(10);

/// The state of a process's parts; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    ill: Arc<Mutex<BTreeMap<&'static str, Illness>>>,
}

#[derive(Debug)]
struct Illness {
    why: String,
    logged: Instant,
}

impl Health {
    /// `part` is well. Logs when it was not.
    pub fn well(&self, part: &'static str) {
        if self.parts().remove(part).is_some() {
            tracing::info!("{part} is back");
        }
    }

    /// `part` is not well, and why. Logs when that is new, and other reasons from time to time.
    pub fn ill(&self, part: &'static str, why: impl Into<String>) {
        let (why, now) = (why.into(), Instant::now());
        let mut parts = self.parts();
        let before = parts.get(part);
        let log = before.is_none_or(|before| before.why != why && now.duration_since(before.logged) >= REMIND);
        let logged = before.filter(|_| !log).map_or(now, |before| before.logged);
        if log {
            tracing::warn!("{part}: {why}");
        }
        parts.insert(part, Illness { why, logged });
    }

    /// What is not well, by part; empty when all is.
    pub fn complaints(&self) -> BTreeMap<&'static str, String> {
        self.parts().iter().map(|(part, illness)| (*part, illness.why.clone())).collect()
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Illness>> {
        self.ill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
