//! `METRICS_ADDRESS=host:port` serves `/metrics` for Prometheus and `/health` for orchestrators.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    Environment,
    health::{Health, HealthReport},
};

const UPKEEP: Duration = Duration::from_secs(5);
/// How long a process may take to report its health.
const TIMEOUT: Duration = Duration::from_secs(3);
const JSON: &str = "application/json";

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

/// Takes the address that [`serve`] serves on.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address);
    let listener = listener.with_context(|| format!("METRICS_ADDRESS: cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves metrics and health until shutdown.
pub async fn serve(listener: TcpListener, health: Health, shutdown: CancellationToken) -> Result<()> {
    let handle = recorder()?;
    let (upkeep, stop) = (handle.clone(), shutdown.clone());
    // histograms grow until they are read, and it may be that nothing reads them
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    }));
    let app = Router::new()
        .route("/metrics", get(move || async move { handle.render() }))
        .route("/health", get(move |headers: HeaderMap| async move { answer(&health.report(), &headers) }));
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tracing::info!("metrics and health on http://{}/metrics and /health", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await.context("metrics server")
}

/// Asks a running process for its health. `0.0.0.0` means this machine.
pub fn health_of(address: SocketAddr) -> Result<HealthReport> {
    let host = if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address };
    let mut stream = TcpStream::connect_timeout(&host, TIMEOUT).with_context(|| format!("no answer from {host}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /health HTTP/1.0\r\nAccept: {JSON}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer).with_context(|| format!("reading the answer of {host}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).with_context(|| format!("{host} does not serve onhand's /health"))
}

/// The container's health check: an error when the process is unhealthy.
pub fn probe(address: SocketAddr) -> Result<()> {
    let report = health_of(address)?;
    ensure!(report.problems.is_empty(), "{}", report.lines().join("; "));
    Ok(())
}

/// Text for people; JSON for who accepts it.
fn answer(report: &HealthReport, headers: &HeaderMap) -> Response {
    let status = if report.problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if headers.get(header::ACCEPT).is_some_and(|accepted| accepted == JSON) {
        let body = serde_json::to_string(report).unwrap_or_default();
        return (status, [(header::CONTENT_TYPE, JSON)], body).into_response();
    }
    let lines: Vec<_> = report.lines().into_iter().map(|line| line + "\n").collect();
    (status, if lines.is_empty() { "healthy\n".to_owned() } else { lines.concat() }).into_response()
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
    use super::*;

    #[tokio::test]
    async fn health_names_each_unhealthy_part_of_each_service_and_since_when() {
        let health = Health::default();
        let (importer, stock) = (health.of("importer"), health.of("stock"));
        importer.unhealthy("kafka", "no answer");
        stock.unhealthy("postgres", "no room");
        let since = health.report().problems[1].since.clone();
        stock.unhealthy("postgres", "no memory");
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, health.clone(), shutdown.clone()));
        let ask = || async { tokio::task::spawn_blocking(move || health_of(address)).await.expect("asked") };

        let report = ask().await.expect("a report");
        assert_eq!(report, health.report());
        assert_eq!(report.services, ["importer", "stock"]);
        let lines = report.lines();
        assert!(lines[0].starts_with("importer: kafka: no answer (since "), "{lines:?}");
        assert_eq!(lines[1], format!("stock: postgres: no memory (since {since})"));

        importer.healthy("kafka");
        stock.healthy("postgres");
        assert_eq!(ask().await.expect("a report").problems, []);
        shutdown.cancel();
        server.await.expect("no panic").expect("served");
    }
}
