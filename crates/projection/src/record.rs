//! A record of a topic, as a service decodes it.

use events::Timestamp;

/// A record as Kafka gives it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// Its key; none when it has none, or an empty one.
    pub key: Option<&'a [u8]>,
    /// Its value; empty when it has none.
    pub payload: &'a [u8],
    /// Its timestamp: when it was produced, or appended, as the topic is configured. None from a
    /// producer that gives none.
    pub timestamp: Option<Timestamp>,
    /// Its headers, in their order.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl<'a> Record<'a> {
    /// The value of the first header with this name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}
