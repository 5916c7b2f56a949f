//! What a service says about itself: each part (Kafka, Postgres, ...) is well or says why not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The state of a process's parts; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Health {
    /// `part` is well. Logs when it was not.
    pub fn well(&self, part: &'static str) {
        if self.set(part, None).is_some_and(|before| before.is_some()) {
            tracing::info!("{part} is back");
        }
    }

    /// `part` is not well, and why. Logs when that is new.
    pub fn ill(&self, part: &'static str, why: impl Into<String>) {
        let why = why.into();
        if self.set(part, Some(why.clone())) != Some(Some(why.clone())) {
            tracing::warn!("{part}: {why}");
        }
    }

    /// What is not well, by part; empty when all is.
    pub fn complaints(&self) -> BTreeMap<&'static str, String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(|(part, why)| Some((*part, why.clone()?))).collect()
    }

    fn set(&self, part: &'static str, state: Option<String>) -> Option<Option<String>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part, state)
    }
}
