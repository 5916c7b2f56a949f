//! From the bytes of a file to lines and rows, and the position up to which it is read. Nothing here knows
//! about directories, other files, or when a file is complete.

pub(crate) mod file_reader;
pub(crate) mod lines;
pub(crate) mod position;
pub(crate) mod source;
pub(crate) mod stream;
pub(crate) mod table;
