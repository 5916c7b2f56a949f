//! The services, run in this process.

use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use futures::future::BoxFuture;
use runtime::{Environment, health::Health, lifecycle::Tasks, metrics};
use tokio_util::sync::CancellationToken;

/// A service: `importer` sends the files of a directory to topics; `stock` applies the events topic to
/// stock on hand in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Service {
    Importer,
    Stock,
}

/// All services, in the order in which an event passes them.
pub(crate) const ALL: [Service; 2] = [Service::Importer, Service::Stock];

type Start = Box<dyn FnOnce(Health, CancellationToken) -> BoxFuture<'static, Result<()>>>;

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Importer => "importer",
            Service::Stock => "stock",
        }
    }

    fn prepare(self, env: &mut Environment) -> Start {
        match self {
            Service::Importer => {
                let settings = importer::Settings::read(env);
                Box::new(move |health, shutdown| Box::pin(importer::run(settings, health, shutdown)))
            }
            Service::Stock => {
                let settings = stock::Settings::read(env);
                Box::new(move |health, shutdown| Box::pin(stock::run(settings, health, shutdown)))
            }
        }
    }
}

/// Checks the environment's settings before any server is started.
pub(crate) fn check(services: &[Service]) -> Result<()> {
    let mut env = Environment::of_process();
    if env.text("POSTGRES_HOSTNAME").is_none() {
        // set once the private server runs
        for name in ["POSTGRES_HOSTNAME", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"] {
            env.set(name, "private");
        }
    }
    for service in services {
        drop(service.prepare(&mut env));
    }
    metrics::address(&mut env);
    Ok(env.finish()?)
}

/// Where health and metrics are served: `METRICS_ADDRESS`; when it is unset, a free port of this
/// machine, for `onhand status`.
pub(crate) fn listen(env: &mut Environment) -> Result<TcpListener> {
    let address = metrics::address(env);
    env.finish()?;
    metrics::listen(address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))))
}

/// Starts services once all of their settings are right, and serves their health and metrics. They
/// end together: at shutdown, or when one of them fails.
pub(crate) fn start(
    services: &[Service],
    listener: Option<TcpListener>,
    env: &mut Environment,
    shutdown: &CancellationToken,
) -> Result<Tasks> {
    let prepared: Vec<_> = services.iter().map(|service| (service.name(), service.prepare(env))).collect();
    env.finish()?;
    let health = Health::default();
    let mut tasks = Tasks::new(shutdown.clone());
    if let Some(listener) = listener {
        tasks.spawn("metrics", metrics::serve(listener, health.clone(), shutdown.clone()));
    }
    // all handles before any service reports: names are shown when there are several services
    let prepared: Vec<_> = prepared.into_iter().map(|(name, start)| (name, health.of(name), start)).collect();
    for (name, health, start) in prepared {
        tasks.spawn(name, start(health, shutdown.clone()));
    }
    Ok(tasks)
}
