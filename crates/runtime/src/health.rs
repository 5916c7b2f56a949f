//! What the services of a process report about their parts (Kafka, Postgres, ...): healthy, or why
//! not. A part belongs to the service that reports it: while one service has lost Postgres, another
//! that reaches it says nothing about the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// While a part is ill, its reasons are logged at most this often.
const REMIND: Duration = Duration::from_secs(10);

/// A service's handle on the state of its process; clones are the same service.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Empty where nobody asked for a service of its own.
    service: &'static str,
    process: Arc<Mutex<Process>>,
}

#[derive(Debug, Default)]
struct Process {
    services: BTreeSet<&'static str>,
    /// By service and part.
    ill: BTreeMap<(&'static str, &'static str), Illness>,
}

#[derive(Debug)]
struct Illness {
    why: String,
    logged: Instant,
}

impl Health {
    /// The handle of a service of this process. Where there are several, their names are reported
    /// and logged before the part's.
    pub fn of(&self, service: &'static str) -> Health {
        self.process().services.insert(service);
        Health { service, process: Arc::clone(&self.process) }
    }

    /// `part` is well. Logs when it was not.
    pub fn well(&self, part: &'static str) {
        let mut process = self.process();
        if process.ill.remove(&(self.service, part)).is_some() {
            tracing::info!("{} is back", process.name(self.service, part));
        }
    }

    /// `part` is not well, and why. Logs when that is new, and other reasons from time to time.
    pub fn ill(&self, part: &'static str, why: impl Into<String>) {
        let (why, now) = (why.into(), Instant::now());
        let mut process = self.process();
        let before = process.ill.get(&(self.service, part));
        let log = before.is_none_or(|before| before.why != why && now.duration_since(before.logged) >= REMIND);
        let logged = before.filter(|_| !log).map_or(now, |before| before.logged);
        if log {
            tracing::warn!("{}: {why}", process.name(self.service, part));
        }
        process.ill.insert((self.service, part), Illness { why, logged });
    }

    /// What is not well in the process, whichever service reported it: `part`, or `service: part`
    /// where there are several services, and why. Empty when all is well.
    pub fn complaints(&self) -> BTreeMap<String, String> {
        let process = self.process();
        let one = |(&(service, part), illness): (&_, &Illness)| (process.name(service, part), illness.why.clone());
        process.ill.iter().map(one).collect()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    fn name(&self, service: &str, part: &str) -> String {
        if self.services.len() > 1 { format!("{service}: {part}") } else { part.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::Health;

    fn complaints(health: &Health) -> Vec<(String, String)> {
        health.complaints().into_iter().collect()
    }

    #[test]
    fn a_service_that_is_healthy_does_not_clear_the_problem_of_another_in_the_same_process() {
        let process = Health::default();
        let (importer, stock) = (process.of("importer"), process.of("stock"));
        importer.ill("kafka", "no answer");
        stock.ill("kafka", "no topic");
        stock.ill("postgres", "no room");
        let expected = [("importer: kafka", "no answer"), ("stock: kafka", "no topic"), ("stock: postgres", "no room")];
        assert_eq!(complaints(&process), expected.map(|(part, why)| (part.to_owned(), why.to_owned())));

        importer.well("postgres");
        importer.well("kafka");
        let expected = [("stock: kafka", "no topic"), ("stock: postgres", "no room")];
        assert_eq!(complaints(&process), expected.map(|(part, why)| (part.to_owned(), why.to_owned())));

        stock.clone().well("kafka");
        stock.well("postgres");
        assert_eq!(complaints(&process), []);
    }

    #[test]
    fn a_process_with_one_service_names_parts_alone() {
        let process = Health::default();
        let stock = process.of("stock");
        stock.ill("postgres", "no room");
        assert_eq!(complaints(&process), [("postgres".to_owned(), "no room".to_owned())]);
        stock.well("postgres");
        assert_eq!(complaints(&process), []);
    }
}
