//! The commands, one file or folder each.

pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod offsets;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod up;
pub(crate) mod verify;
pub(crate) mod with;
