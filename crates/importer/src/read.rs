//! From the bytes of one file to its lines, its rows and its position. Nothing in here knows of directories, of
//! other files, or of when a file is complete.

pub(crate) mod file_reader;
pub(crate) mod lines;
pub(crate) mod position;
pub(crate) mod source;
