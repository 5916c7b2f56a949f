//! Logs to stderr: `LOG_LEVEL` (a level, or tracing's directives) and `LOG_FORMAT` (text or json).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Environment;

/// Starts logging. A second call in one process changes nothing.
pub fn start(env: &mut Environment) {
    let level = env.text_or("LOG_LEVEL", "info");
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|_| {
        env.reject(format!(
            "LOG_LEVEL is {level:?}, expected error, warn, info, debug or trace (for example LOG_LEVEL=info)"
        ));
        EnvFilter::new("info")
    });
    // statements and client internals are logged only when LOG_LEVEL names them
    let quiet = ["sqlx=warn", "sqlx::query=error", "sqlx::postgres::notice=error", "rdkafka=off", "librdkafka=off"]
        .iter()
        .fold(filter, |filter, directive| match directive.parse() {
            Ok(parsed) if !level.contains(directive.split('=').next().unwrap_or(directive)) => {
                filter.add_directive(parsed)
            }
            _ => filter,
        });
    let format = env.text_or("LOG_FORMAT", "text");
    let builder = tracing_subscriber::fmt().with_env_filter(quiet).with_writer(std::io::stderr);
    let started = match format.as_str() {
        "json" => builder.json().try_init(),
        _ => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
    };
    if !["json", "text"].contains(&format.as_str()) {
        env.reject(format!("LOG_FORMAT is {format:?}, expected text or json (for example LOG_FORMAT=text)"));
    }
    if started.is_err() {
        tracing::debug!("logging is already started");
    }
}
