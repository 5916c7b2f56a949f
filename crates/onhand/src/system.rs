//! Which servers and services a command works with.

pub(crate) mod lag;
pub(crate) mod private_servers;
pub(crate) mod services;
pub(crate) mod target;
pub(crate) mod topic_reader;
