//! A record as a line for people.

use events::{Column, CsvForm, EVENT_TYPES, Kind};
use rdkafka::{Message, message::OwnedMessage};
use serde_json::{Map, Value};
use time::macros::format_description;

use crate::{output::terminal::Paint, system::topic_reader::time_of};

/// How lines are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) paint: Paint,
    /// The terminal's columns, if known; less important text is cut to fit.
    pub(crate) width: Option<usize>,
    /// Whether the line starts with the record's time.
    pub(crate) time: bool,
}

impl Style {
    /// `11-23 09:30:00  0:17  4-3  incoming  400 ...`; for a refusal, the reason first.
    pub(crate) fn line(&self, message: &OwnedMessage) -> String {
        let mut start = String::new();
        if self.time {
            let format = format_description!("[month]-[day] [hour]:[minute]:[second]");
            let time = time_of(message).and_then(|time| time.format(format).ok());
            start = format!("{:14}  ", time.unwrap_or_default());
        }
        let place = format!("{}:{}", message.partition(), message.offset());
        let key = printable(&String::from_utf8_lossy(message.key().unwrap_or_default()));
        let payload = message.payload().unwrap_or_default();
        let Ok(Value::Object(object)) = serde_json::from_slice(payload) else {
            let start = format!("{start}{place:7} {key:10}  ");
            let text = printable(&String::from_utf8_lossy(payload));
            return self.paint.dim(&start) + &self.cut(&text, start.chars().count());
        };
        if let Some(error) = object.get("error") {
            let start = format!("{start}{place:7} ");
            let reason = plain(error);
            let (place, row) = source(&object);
            let place = place.map(|place| format!("  {place}")).unwrap_or_default();
            let used = [&start, &reason, &place].map(|part| part.chars().count()).iter().sum::<usize>() + 2;
            let row = self.paint.dim(self.cut(&row, used));
            return format!("{}{}{place}  {row}", self.paint.dim(&start), self.paint.red(&reason))
                .trim_end()
                .to_owned();
        }
        let start = format!("{start}{place:7} ");
        let fields = match form_of(&object) {
            Some(csv) => self.columns(csv, &object, start.chars().count() + 12),
            None => self.cut(&pairs(&object), start.chars().count() + 12),
        };
        format!("{}{}  {fields}", self.paint.dim(&start), self.paint.bold(format!("{key:10}")))
    }

    /// The fields in columns, without those of the key, which is shown already; ids come last, shortened
    /// when there is no room.
    fn columns(&self, csv: &CsvForm, object: &Map<String, Value>, used: usize) -> String {
        let shown = |column: &&Column| object.get(column.name).map(plain).unwrap_or_default();
        let rest = csv.columns.iter().enumerate().filter(|(at, _)| !csv.key.contains(at));
        let (ids, others): (Vec<_>, Vec<_>) =
            rest.map(|(_, column)| column).partition(|column| matches!(column.kind, Kind::Uuid));
        let mut line = String::new();
        for column in &others {
            let text = shown(column);
            line += &match column.kind {
                Kind::OneOf(words) => {
                    let widest = words.iter().map(|word| word.len()).max().unwrap_or_default();
                    format!("{text:widest$}  ")
                }
                Kind::DateTime => format!("{text:20}  "),
                Kind::Integer { .. } => format!("{text:>6}  "),
                Kind::Uuid => String::new(),
            };
        }
        let room = self.width.map(|width| width.saturating_sub(used + line.chars().count()));
        for id in &ids {
            let text = shown(id);
            let short = room.is_some_and(|room| room < text.chars().count());
            let text = if short { text.chars().take(8).collect() } else { text };
            line += &self.paint.dim(text);
        }
        line
    }

    /// `text`, cut to the columns that are left when `used` are taken.
    fn cut(&self, text: &str, used: usize) -> String {
        let room = self.width.map_or(usize::MAX, |width| width.saturating_sub(used));
        match text.char_indices().nth(room) {
            None => text.to_owned(),
            Some(_) if room < 10 => String::new(),
            Some(_) => text.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
        }
    }
}

/// The CSV form of the event type that has these fields, if it has one.
fn form_of(object: &Map<String, Value>) -> Option<&'static CsvForm> {
    let is_whole =
        |csv: &&CsvForm| csv.columns.iter().all(|column| !column.required || object.contains_key(column.name));
    EVENT_TYPES.iter().filter_map(|event_type| event_type.csv).find(is_whole)
}

/// The file and line that a refusal comes from, and what was refused as a line of CSV.
fn source(object: &Map<String, Value>) -> (Option<String>, String) {
    let field = |name: &str| object.get(name).map(plain);
    let place = match (field("file"), field("line")) {
        (Some(file), Some(line)) => Some(format!("{file}:{line}")),
        _ => None,
    };
    let row = field("raw").or_else(|| {
        let fields: Vec<_> = form_of(object)?.columns.iter().filter_map(|column| field(column.name)).collect();
        Some(fields.join(","))
    });
    let others =
        || pairs(&object.iter().filter(|(name, _)| *name != "error").map(|(n, v)| (n.clone(), v.clone())).collect());
    (place, row.unwrap_or_else(others))
}

/// `name=value name=value`
fn pairs(object: &Map<String, Value>) -> String {
    let pairs: Vec<_> = object.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    pairs.join(" ")
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// Nothing in a record may move the cursor or ring the bell.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}
