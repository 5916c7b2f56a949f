//! A message that a service publishes.

/// A message for a topic. Delivery is at least once: its `ce_id` is the same each time, so that
/// readers can drop repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub topic: String,
    /// The Kafka key.
    pub key: Option<Vec<u8>>,
    /// The Kafka value.
    pub payload: Vec<u8>,
    /// Its identity (CloudEvents, binary mode): made of what it is about, never at random.
    pub ce_id: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Message {
    /// The header that carries [`Message::ce_id`].
    pub const ID_HEADER: &'static str = "ce_id";

    /// All headers: the further ones, then the id.
    pub fn all_headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let further = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        further.chain([(Message::ID_HEADER, self.ce_id.as_str())])
    }

    /// Bytes of key, payload and headers.
    pub fn size(&self) -> usize {
        let headers: usize = self.all_headers().map(|(name, value)| name.len() + value.len()).sum();
        self.key.as_ref().map_or(0, Vec::len) + self.payload.len() + headers
    }
}
