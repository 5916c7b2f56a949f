//! Which names in `input/` are files to import.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// What a file in `input/` is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// `.csv`
    Csv,
    /// `.csv.gz`
    Gzip,
    /// Hidden or temporary: not ready to be imported.
    Temporary,
    /// Not for the importer.
    Other,
}

/// The kind of file that has this name.
pub(crate) fn file_kind(name: &OsStr) -> FileKind {
    let name = name.as_bytes().to_ascii_lowercase();
    if name.starts_with(b".") || [&b".part"[..], b".tmp", b"~"].iter().any(|end| name.ends_with(end)) {
        FileKind::Temporary
    } else if name.ends_with(b".csv") {
        FileKind::Csv
    } else if name.ends_with(b".csv.gz") {
        FileKind::Gzip
    } else {
        FileKind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_temporary_names_are_ignored_whatever_their_extension() {
        let cases = [
            ("a.csv", FileKind::Csv),
            ("A.CSV", FileKind::Csv),
            ("a.csv.gz", FileKind::Gzip),
            (".a.csv", FileKind::Temporary),
            ("a.csv.part", FileKind::Temporary),
            ("a.csv.tmp", FileKind::Temporary),
            ("a.csv~", FileKind::Temporary),
            ("a.txt", FileKind::Other),
            ("a.gz", FileKind::Other),
            ("csv", FileKind::Other),
        ];
        for (name, expected) in cases {
            assert_eq!(file_kind(OsStr::new(name)), expected, "{name}");
        }
    }
}
