//! Which services run, and what they report about themselves.

use std::{
    fs::{File, TryLockError},
    io,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{
    health::{HealthReport, Problem},
    kafka, metrics,
};
use serde::Serialize;

use crate::system::services::{ALL, Service};

/// A service, over all of its processes.
#[derive(Debug, Serialize)]
pub(super) struct ServiceStatus {
    pub(super) service: &'static str,
    /// `None` when that is not known.
    pub(super) running: Option<bool>,
    /// When each process that reports its health was started, RFC 3339.
    pub(super) started_at: Vec<String>,
    /// Whether its processes report no problem; `None` when none of them reports.
    pub(super) healthy: Option<bool>,
    pub(super) problems: Vec<Problem>,
}

impl ServiceStatus {
    /// Whether nothing is known to be wrong.
    pub(super) fn is_healthy(&self) -> bool {
        self.running != Some(false) && self.healthy != Some(false)
    }
}

/// Asks the processes at `health`, and where they do not tell, Kafka and the import directory.
/// Blocks.
pub(super) fn look(
    broker: Option<&BaseConsumer>,
    group: &str,
    directory: &Path,
    health: &[String],
    unknown: &mut Vec<String>,
) -> Vec<ServiceStatus> {
    let mut reports = Vec::new();
    let mut silent = Vec::new();
    for name in health {
        match addresses(name) {
            Err(error) => silent.push(format!("{error:#}")),
            // a name may stand for several processes
            Ok(addresses) => {
                for address in addresses {
                    match metrics::health_of(address) {
                        Ok(report) => reports.push(report),
                        Err(error) => silent.push(format!("{error:#}")),
                    }
                }
            }
        }
    }
    let why = if health.is_empty() { "METRICS_ADDRESS is not set".to_owned() } else { silent.join("; ") };
    let status = |&service: &Service| {
        let mut status = of_reports(service.name(), &reports);
        if status.running.is_none() {
            let running = match service {
                Service::Importer => is_locked(directory),
                Service::Stock => broker.map_or(Ok(None), |broker| has_members(broker, group).map(Some)),
            };
            status.running = running.unwrap_or_else(|error| {
                unknown.push(format!("whether {} runs: {error:#}", service.name()));
                None
            });
            if status.running != Some(false) {
                unknown.push(format!(
                    "health of {}: {}",
                    service.name(),
                    if why.is_empty() { "it reports at none of these addresses" } else { &why }
                ));
            }
        }
        status
    };
    let services: Vec<_> = ALL.iter().map(status).collect();
    // another process of a service that reports may be silent
    if !silent.is_empty() && services.iter().all(|status| status.healthy.is_some()) {
        unknown.extend(silent.into_iter().map(|error| format!("health: {error}")));
    }
    services
}

fn of_reports(service: &'static str, reports: &[HealthReport]) -> ServiceStatus {
    let own: Vec<_> = reports.iter().filter(|report| report.services.iter().any(|name| name == service)).collect();
    let problems = own.iter().flat_map(|report| &report.problems).filter(|problem| problem.service == service);
    let problems: Vec<_> = problems.cloned().collect();
    let reported = !own.is_empty();
    ServiceStatus {
        service,
        running: reported.then_some(true),
        started_at: own.iter().map(|report| report.started_at.clone()).collect(),
        healthy: reported.then_some(problems.is_empty()),
        problems,
    }
}

fn addresses(name: &str) -> Result<Vec<SocketAddr>> {
    let found = name.to_socket_addrs().with_context(|| format!("{name}: expected HOST:PORT of a service"))?;
    Ok(found.collect())
}

/// An importer holds a lock as long as it works in the directory. `None`: the directory is not here.
fn is_locked(directory: &Path) -> Result<Option<bool>> {
    let path = directory.join("progress/lock");
    match File::open(&path) {
        Ok(lock) => Ok(Some(matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => Ok(Some(false)),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn has_members(broker: &BaseConsumer, group: &str) -> Result<bool> {
    let groups = broker.fetch_group_list(Some(group), kafka::TIMEOUT);
    let groups = groups.with_context(|| format!("asking Kafka for the members of group {group}"))?;
    Ok(groups.groups().iter().any(|group| !group.members().is_empty()))
}
