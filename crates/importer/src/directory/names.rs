//! The names that are derived from a file's name. Names are bytes: anything but `/` and NUL, up to 255 bytes
//! long.

use std::{
    ffi::{OsStr, OsString},
    ops::Deref,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use sha2::{Digest, Sha256};

use crate::find::file_kind::{FileKind, file_kind};

/// The longest name that file systems allow.
const MAX_NAME_BYTES: usize = 255;

/// A short name for the files that belong to `name` while it is being imported.
pub(crate) fn key(name: &OsStr) -> String {
    hex::encode(&Sha256::digest(name.as_bytes())[..16])
}

/// `NAME.receipt.json`
pub(crate) fn receipt_name(name: &OsStr) -> OsString {
    let end = b".receipt.json";
    if name.len() + end.len() <= MAX_NAME_BYTES {
        return joined(name.as_bytes(), end);
    }
    let end = [b"~", &key(name).as_bytes()[..8], end].concat();
    joined(truncated(name.as_bytes(), MAX_NAME_BYTES - end.len()), &end)
}

/// `NAME.csv` for the refused rows of a `NAME.csv` or `NAME.csv.gz`.
pub(crate) fn refused_rows_name(name: &OsStr) -> OsString {
    match file_kind(name) {
        FileKind::Gzip => OsStr::from_bytes(&name.as_bytes()[..name.len() - 3]).to_owned(),
        _ => name.to_owned(),
    }
}

/// `name`, or `name` with `-2`, `-3` ... before its extension, such that neither it nor its
/// receipt exists in `directory`.
pub(crate) fn free_name(directory: &Path, name: &OsStr) -> OsString {
    free_name_except(directory, name, |_| false)
}

/// A [`free_name`] whose path is not reserved either.
pub(crate) fn free_name_except(directory: &Path, name: &OsStr, is_reserved: impl Fn(&Path) -> bool) -> OsString {
    let taken = |name: &OsStr| {
        let path = directory.join(name);
        is_reserved(&path)
            || path.symlink_metadata().is_ok()
            || directory.join(receipt_name(name)).symlink_metadata().is_ok()
    };
    if !taken(name) {
        return name.to_owned();
    }
    let bytes = name.as_bytes();
    let extension = match file_kind(name) {
        FileKind::Csv => 4,
        FileKind::Gzip => 7,
        _ => 0,
    };
    let (stem, extension) = bytes.split_at(bytes.len() - extension);
    let mut number = 2_u64;
    loop {
        let end = [format!("-{number}").as_bytes(), extension].concat();
        let candidate = joined(truncated(stem, MAX_NAME_BYTES - end.len()), &end);
        if !taken(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

/// A name as it is stored in a record: its bytes in hexadecimal, since names need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredName(OsString);

impl<T: Into<OsString>> From<T> for StoredName {
    fn from(name: T) -> StoredName {
        StoredName(name.into())
    }
}

impl Deref for StoredName {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        &self.0
    }
}

impl AsRef<Path> for StoredName {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl Serialize for StoredName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0.as_bytes()))
    }
}

impl<'de> Deserialize<'de> for StoredName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StoredName, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Ok(StoredName(OsString::from_vec(bytes)))
    }
}

fn joined(stem: &[u8], end: &[u8]) -> OsString {
    OsString::from_vec([stem, end].concat())
}

/// At most `length` bytes, not truncated inside a character.
fn truncated(name: &[u8], length: usize) -> &[u8] {
    if name.len() <= length {
        return name;
    }
    match std::str::from_utf8(name) {
        Ok(text) => &name[..text.floor_char_boundary(length)],
        Err(_) => &name[..length],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_a_number_before_its_extension() {
        let directory = tempfile::tempdir().expect("a directory");
        let free = |name: &str| free_name(directory.path(), OsStr::new(name)).into_string().expect("UTF-8");
        for name in ["a.csv", "a-2.csv", "b.csv.gz", "c.csv.receipt.json"] {
            std::fs::write(directory.path().join(name), "").expect("a file");
        }
        assert_eq!(
            [free("a.csv"), free("b.csv.gz"), free("c.csv"), free("d.csv")],
            ["a-3.csv", "b-2.csv.gz", "c-2.csv", "d.csv"]
        );
    }

    #[test]
    fn the_longest_names_have_receipts_and_numbers_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let name = format!("{}.csv", "ü".repeat(125));
        std::fs::write(directory.path().join(&name), "").expect("a file");
        let free = free_name(directory.path(), OsStr::new(&name));
        let receipt = receipt_name(&free);
        assert!(
            free.len() <= MAX_NAME_BYTES && free.to_str().is_some_and(|free| free.ends_with("ü-2.csv")),
            "{free:?}"
        );
        assert!(
            receipt.len() <= MAX_NAME_BYTES && receipt.to_str().is_some_and(|name| name.ends_with(".receipt.json"))
        );
        assert_ne!(receipt, receipt_name(OsStr::new(&name)));
    }
}
