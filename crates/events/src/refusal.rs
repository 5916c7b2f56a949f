//! Why a record or a row is refused.

use std::fmt;

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence that a shop manager understands.
    pub error: String,
    /// The kind of refusal, for programs.
    pub class: RefusalClass,
}

/// The kind of a refusal. Its name on the wire is the variant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalClass {
    /// A row of a file whose columns have wrong values.
    InvalidRow,
    /// A line of a file that cannot be separated into columns.
    UnreadableRow,
    /// A record that is not an event of its topic.
    InvalidEvent,
    /// An event that the database does not accept.
    NotApplicable,
    /// A sale of an item that its store never had.
    UnknownCard,
    /// A sale of more than there is.
    InsufficientStock,
    /// More than a card can hold.
    StockOverflow,
    /// An id that is known with other content.
    ConflictingTransaction,
}

impl RefusalClass {
    /// Every class.
    pub const ALL: [RefusalClass; 8] = [
        RefusalClass::InvalidRow,
        RefusalClass::UnreadableRow,
        RefusalClass::InvalidEvent,
        RefusalClass::NotApplicable,
        RefusalClass::UnknownCard,
        RefusalClass::InsufficientStock,
        RefusalClass::StockOverflow,
        RefusalClass::ConflictingTransaction,
    ];

    /// The class of a name on the wire.
    pub fn from_name(name: &str) -> Option<RefusalClass> {
        RefusalClass::ALL.into_iter().find(|class| class.to_string() == name)
    }
}

impl fmt::Display for RefusalClass {
    /// Its name on the wire: `InsufficientStock`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
