//! Logs to stderr: `LOG_LEVEL` (a level, or tracing's directives) and `LOG_FORMAT` (text or json).

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::Environment;

/// The filter of a level or of directives. A single word that is no level would be the name of a module
/// for which alone lines are shown: far more often, it is a slip.
fn parse(level: &str) -> Option<EnvFilter> {
    let is_word = level.chars().all(char::is_alphanumeric);
    if is_word && level.parse::<LevelFilter>().is_err() { None } else { EnvFilter::try_new(level).ok() }
}

/// Starts logging. A second call in one process changes nothing.
pub fn start(env: &mut Environment) {
    let level = env.text_or("LOG_LEVEL", "info");
    let filter = parse(&level).unwrap_or_else(|| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_directives_are_taken_and_a_slip_is_not() {
        let taken = ["info", "WARN", "off", "importer=debug", "info,sqlx=debug", "projection::apply=trace"];
        assert_eq!(taken.map(|level| parse(level).is_some()), [true; 6]);
        assert_eq!(["inf", "infos", "inf=o"].map(|level| parse(level).is_some()), [false; 3]);
    }
}
