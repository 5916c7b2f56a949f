//! What a terminal shows.

pub(crate) mod next_steps;
pub(crate) mod record_line;
pub(crate) mod terminal;
