//! Which files there are: `input/` is listed regularly, and watched.

pub(crate) mod file_kind;
pub(crate) mod scan;
pub(crate) mod watcher;
