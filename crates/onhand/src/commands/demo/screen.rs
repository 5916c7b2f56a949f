//! The demo's screen: every line says at its left who speaks. The services' log lines come here
//! too, instead of to stderr.

use std::{
    fmt::{self, Debug},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use runtime::Environment;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::output::terminal::{self, Paint};

/// Columns that who speaks takes.
pub(crate) const LABEL: usize = 10;

/// Where the demo's lines go; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    pub(crate) paint: Paint,
    /// The first error of writing: nobody reads any longer.
    failed: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        Screen { paint: Paint::of_stdout(), failed: Arc::default() }
    }

    /// A line of `who`.
    pub(crate) fn say(&self, who: &str, what: &str) {
        let label = format!("{who:>8}");
        let label = match who {
            "errors" => self.paint.red(label),
            "events" => self.paint.cyan(label),
            "stock" => self.paint.green(label),
            "importer" => self.paint.yellow(label),
            _ => self.paint.blue(label),
        };
        let room = terminal::width().map_or(usize::MAX, |width| width.saturating_sub(LABEL)).max(20);
        self.plain(&format!("{label}  {}", wrap(what, room)));
    }

    /// A line of our own.
    pub(crate) fn plain(&self, line: &str) {
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.kind());
        }
    }

    /// An error once a line could not be written.
    pub(crate) fn check(&self) -> Result<()> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |kind| Err(io::Error::from(kind)).context("writing to stdout"))
    }

    /// From now on log lines come here; `LOG_LEVEL` says which, as ever.
    pub(crate) fn take_logs(&self, env: &Environment) {
        let level = env.text_or("LOG_LEVEL", "info");
        let filter = EnvFilter::new(format!("{level},sqlx=warn,rdkafka=off,librdkafka=off"));
        // fails only where logging was started before, and then lines go there
        let _ = tracing_subscriber::registry().with(filter).with(LogLines(self.clone())).try_init();
    }
}

/// Log lines to the screen.
struct LogLines(Screen);

impl<S: Subscriber> Layer<S> for LogLines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let Text { message, fields } = text;
        let paint = self.0.paint;
        let line = match *event.metadata().level() {
            Level::ERROR => paint.red(message),
            Level::WARN => paint.yellow(message),
            _ => message,
        };
        self.0.say(who(event.metadata().target()), &(line + &fields));
    }
}

/// Breaks a line at spaces; what follows is indented. Colours take no room.
fn wrap(text: &str, room: usize) -> String {
    let mut wrapped = String::with_capacity(text.len());
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let mut escaped = false;
        let visible = word.trim_end().chars().filter(|char| {
            let counts = !escaped && *char != '\x1b';
            escaped = if escaped { *char != 'm' } else { *char == '\x1b' };
            counts
        });
        let visible = visible.count();
        if used > 0 && used + visible > room {
            wrapped.truncate(wrapped.trim_end().len());
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(LABEL));
            used = 0;
        }
        wrapped.push_str(word);
        used += visible + usize::from(word.ends_with(' '));
    }
    wrapped
}

/// Who speaks: the service, or the server that a shared part speaks of.
fn who(target: &str) -> &str {
    match target.split("::").collect::<Vec<_>>()[..] {
        ["projection", ..] => "stock",
        ["runtime", part @ ("kafka" | "postgres"), ..] => part,
        ["runtime", ..] => "onhand",
        [crate_name, ..] => crate_name,
        [] => "",
    }
}

#[derive(Default)]
struct Text {
    message: String,
    /// ` name=value` each
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        use fmt::Write;
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // who speaks is at the left, and the record has its own line
            "service" | "transaction_id" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
        // a String takes everything
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken_at_spaces_whatever_its_colours() {
        assert_eq!(wrap("\x1b[31mone two  three\x1b[0m", 8), "\x1b[31mone two\n          three\x1b[0m");
        assert_eq!(wrap("averyverylongword it", 8), "averyverylongword\n          it");
        assert_eq!(wrap("stays", 8), "stays");
    }
}
