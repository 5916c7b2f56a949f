//! `METRICS_ADDRESS=host:port` serves `/metrics` for Prometheus and `/health` for orchestrators.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::{Environment, health::Health};

const UPKEEP: Duration = Duration::from_secs(5);

/// `METRICS_ADDRESS`; unset means no server.
pub fn address(env: &mut Environment) -> Option<SocketAddr> {
    let text = env.text("METRICS_ADDRESS")?;
    let address = text.parse().ok();
    if address.is_none() {
        env.reject(format!(
            "METRICS_ADDRESS is {text:?}, expected address:port (for example METRICS_ADDRESS=0.0.0.0:9100)"
        ));
    }
    address
}

/// Serves metrics and health until shutdown.
pub async fn serve(address: SocketAddr, health: Health, shutdown: CancellationToken) -> Result<()> {
    let handle = recorder()?;
    let (upkeep, stop) = (handle.clone(), shutdown.clone());
    // histograms grow until they are looked at, and nobody may look
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    }));
    let app = Router::new()
        .route("/metrics", get(move || async move { handle.render() }))
        .route("/health", get(move || async move { report(&health) }));
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("METRICS_ADDRESS: cannot listen on {address}"))?;
    tracing::info!("metrics and health on http://{}/metrics and /health", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await.context("metrics server")
}

/// Asks a running service's `/health`: the container's health check. An error when it is not well.
pub fn probe(address: SocketAddr) -> Result<()> {
    let timeout = Duration::from_secs(3);
    let host = if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address };
    let mut stream = TcpStream::connect_timeout(&host, timeout).with_context(|| format!("nobody answers on {host}"))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    ensure!(answer.split(' ').nth(1) == Some("200"), "{}", answer.lines().last().unwrap_or("no answer"));
    Ok(())
}

fn report(health: &Health) -> (StatusCode, String) {
    let complaints = health.complaints();
    if complaints.is_empty() {
        return (StatusCode::OK, "well\n".into());
    }
    let lines: Vec<_> = complaints.iter().map(|(part, why)| format!("{part}: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat())
}

/// The process's recorder: services that share a process share it.
fn recorder() -> Result<PrometheusHandle> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new().install_recorder().context("installing the metrics recorder")?;
    Ok(HANDLE.get_or_init(|| handle).clone())
}

#[cfg(test)]
mod tests {
    use super::{Health, StatusCode, report};

    #[test]
    fn health_is_a_line_for_each_unhealthy_part_of_each_service() {
        let health = Health::default();
        let (importer, stock) = (health.of("importer"), health.of("stock"));
        importer.ill("kafka", "no answer");
        stock.ill("postgres", "no room");
        let lines = "importer: kafka: no answer\nstock: postgres: no room\n";
        assert_eq!(report(&health), (StatusCode::SERVICE_UNAVAILABLE, lines.into()));
        importer.well("kafka");
        stock.well("postgres");
        assert_eq!(report(&health), (StatusCode::OK, "well\n".into()));
    }
}
