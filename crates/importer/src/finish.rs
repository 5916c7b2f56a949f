//! Whether a file is complete, and where it goes when all of its rows are acknowledged.

pub(crate) mod blocked_files;
pub(crate) mod completion;
pub(crate) mod copier;
pub(crate) mod late_growth;
pub(crate) mod receipt;
pub(crate) mod stability;
