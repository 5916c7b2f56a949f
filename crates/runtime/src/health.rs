//! What the services of a process report about their parts (Kafka, Postgres, ...): healthy, or why
//! not. A part belongs to the service that reports it: while one service has lost Postgres, another
//! that reaches it says nothing about the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// While a part is unhealthy, its reasons are logged at most this often.
const REMIND: Duration = Duration::from_secs(10);

/// A service's handle on the state of its process; clones are the same service.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Empty for a handle that was not made by [`Health::of`].
    service: &'static str,
    process: Arc<Mutex<Process>>,
}

#[derive(Debug)]
struct Process {
    started_at: SystemTime,
    services: BTreeSet<&'static str>,
    /// By service and part.
    unhealthy: BTreeMap<(&'static str, &'static str), Unhealthy>,
}

impl Default for Process {
    fn default() -> Process {
        Process { started_at: SystemTime::now(), services: BTreeSet::new(), unhealthy: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct Unhealthy {
    reason: String,
    since: SystemTime,
    logged: Instant,
}

/// What a process reports about itself at `/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The services in the process.
    pub services: Vec<String>,
    /// When the process started, RFC 3339.
    pub started_at: String,
    /// Every part that does not work now; empty when the process is healthy.
    pub problems: Vec<Problem>,
}

/// A part of a service that does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The service that reports it.
    pub service: String,
    /// `kafka`, `postgres` and the like.
    pub part: String,
    /// Why, as it was reported last.
    pub reason: String,
    /// Since when the part has not worked, RFC 3339; the reason may have changed since.
    pub since: String,
}

impl Health {
    /// The handle of a service of this process. Where there are several, [`HealthReport::lines`]
    /// name them before the part.
    pub fn of(&self, service: &'static str) -> Health {
        self.process().services.insert(service);
        Health { service, process: Arc::clone(&self.process) }
    }

    /// `part` is healthy. Logs when it was not.
    pub fn healthy(&self, part: &'static str) {
        let mut process = self.process();
        if let Some(before) = process.unhealthy.remove(&(self.service, part)) {
            let elapsed_ms = before.since.elapsed().unwrap_or_default().as_millis() as u64;
            tracing::info!(service = self.name(), part, elapsed_ms, "{part} is back");
        }
    }

    /// `part` is unhealthy, and why. Logs when that is new, and other reasons from time to time.
    pub fn unhealthy(&self, part: &'static str, reason: impl Into<String>) {
        let (reason, now) = (reason.into(), Instant::now());
        let mut process = self.process();
        let before = process.unhealthy.get(&(self.service, part));
        let log = before.is_none_or(|before| before.reason != reason && now.duration_since(before.logged) >= REMIND);
        let logged = before.filter(|_| !log).map_or(now, |before| before.logged);
        let since = before.map_or_else(SystemTime::now, |before| before.since);
        if log {
            tracing::warn!(service = self.name(), part, "{part}: {reason}");
        }
        process.unhealthy.insert((self.service, part), Unhealthy { reason, since, logged });
    }

    /// What does not work in the process, whichever service reported it: `part`, or `service: part`
    /// where there are several services, and why. Empty when the process is healthy.
    pub fn complaints(&self) -> BTreeMap<String, String> {
        let process = self.process();
        let one = |(&(service, part), at): (&_, &Unhealthy)| (process.name(service, part), at.reason.clone());
        process.unhealthy.iter().map(one).collect()
    }

    /// The same with times, for programs.
    pub fn report(&self) -> HealthReport {
        let process = self.process();
        let problem = |(&(service, part), at): (&(&str, &str), &Unhealthy)| Problem {
            service: service.to_owned(),
            part: part.to_owned(),
            reason: at.reason.clone(),
            since: rfc3339(at.since),
        };
        HealthReport {
            services: process.services.iter().map(|&service| service.to_owned()).collect(),
            started_at: rfc3339(process.started_at),
            problems: process.unhealthy.iter().map(problem).collect(),
        }
    }

    fn name(&self) -> Option<&'static str> {
        (!self.service.is_empty()).then_some(self.service)
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HealthReport {
    /// A line for each problem: `part: reason (since TIME)`, after `service: ` where there are
    /// several services.
    pub fn lines(&self) -> Vec<String> {
        let line = |problem: &Problem| {
            let Problem { service, part, reason, since } = problem;
            let service = if self.services.len() > 1 { format!("{service}: ") } else { String::new() };
            format!("{service}{part}: {reason} (since {since})")
        };
        self.problems.iter().map(line).collect()
    }
}

/// To the second: this is for people.
fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).truncate_to_second();
    time.format(&Rfc3339).unwrap_or_default()
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
        importer.unhealthy("kafka", "no answer");
        stock.unhealthy("kafka", "no topic");
        stock.unhealthy("postgres", "no room");
        let expected = [("importer: kafka", "no answer"), ("stock: kafka", "no topic"), ("stock: postgres", "no room")];
        assert_eq!(complaints(&process), expected.map(|(part, why)| (part.to_owned(), why.to_owned())));

        importer.healthy("postgres");
        importer.healthy("kafka");
        let expected = [("stock: kafka", "no topic"), ("stock: postgres", "no room")];
        assert_eq!(complaints(&process), expected.map(|(part, why)| (part.to_owned(), why.to_owned())));

        stock.clone().healthy("kafka");
        stock.healthy("postgres");
        assert_eq!(complaints(&process), []);
    }

    #[test]
    fn a_process_with_one_service_names_parts_alone() {
        let process = Health::default();
        let stock = process.of("stock");
        stock.unhealthy("postgres", "no room");
        assert_eq!(complaints(&process), [("postgres".to_owned(), "no room".to_owned())]);
        stock.healthy("postgres");
        assert_eq!(complaints(&process), []);
    }
}
