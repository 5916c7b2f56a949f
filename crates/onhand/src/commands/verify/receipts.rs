//! The receipts of finished files, beside what the topics hold of these files.

use std::{io, path::Path};

use anyhow::{Context, Result, anyhow};
use events::stock::EVENT_TYPE;
use hashbrown::HashMap;

use super::report::{self, Difference, Differences, Kind};

/// What receipts say of the files of one name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Refused {
    /// Over all receipts. A file that came twice as it is has the same refusals, which count once.
    sum: u64,
    /// The most of one receipt.
    most: u64,
}

/// What the receipts in an import directory say.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    count: u64,
    /// Rows that are on the topic, over all receipts.
    accepted: u64,
    refused: HashMap<String, Refused>,
}

impl Receipts {
    /// Reads the receipts; none if there is no such directory. To be called before the topics are
    /// looked at, since a receipt is written when its rows are there.
    pub(super) fn read(directory: &Path, differences: &mut Differences) -> Result<Option<Receipts>> {
        if !directory.try_exists().with_context(|| directory.display().to_string())? {
            return Ok(None);
        }
        let mut receipts = Receipts::default();
        for folder in ["done", "rejected"].map(|name| directory.join(name)) {
            let entries = match folder.read_dir() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| folder.display().to_string())?,
            };
            for entry in entries {
                let path = entry.with_context(|| folder.display().to_string())?.path();
                if !path.to_string_lossy().ends_with(".receipt.json") {
                    continue;
                }
                let text = match std::fs::read(&path) {
                    // of a file that was left in place, and has gone through meanwhile
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    text => text.with_context(|| path.display().to_string())?,
                };
                let receipt = serde_json::from_slice(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
                receipts.add(&path, &receipt, differences);
            }
        }
        Ok(Some(receipts))
    }

    fn add(&mut self, path: &Path, receipt: &serde_json::Value, differences: &mut Differences) {
        self.count += 1;
        let number = |name: &str| receipt[name].as_u64();
        match (number("rows"), number("accepted"), number("refused")) {
            (Some(rows), Some(accepted), Some(refused)) if rows == accepted + refused => {
                // none: the file was gone before its type was known again
                if receipt["event_type"].as_str().is_none_or(|name| name == EVENT_TYPE.name) {
                    self.accepted += accepted;
                }
                let of_name = self.refused.entry_ref(receipt["file"].as_str().unwrap_or_default()).or_default();
                of_name.sum += refused;
                of_name.most = of_name.most.max(refused);
            }
            _ => differences
                .add(Kind::Receipt, || Difference::new(format!("{}: rows are not accepted + refused", path.display()))),
        }
    }

    /// Compares with the refusals on the errors topic, by file name, and the number of records on
    /// the events topic. Refusals without a receipt are no fault: `onhand import` writes none, a file
    /// may still be being read, and receipts may be removed.
    pub(super) fn compare(
        &self,
        letters: &HashMap<String, u64>,
        records: u64,
        differences: &mut Differences,
    ) -> report::Receipts {
        for (name, refused) in &self.refused {
            let found = letters.get(name).copied().unwrap_or(0);
            if found < refused.most {
                let what = || {
                    let says = format!("a receipt of {name} says that {} rows were refused", refused.most);
                    Difference::new(format!("files: {says}, the errors topic has {found} of it"))
                };
                differences.add(Kind::Receipt, what);
            }
        }
        // repeats and other producers may make more
        if records < self.accepted {
            let what = || {
                let says = format!("the receipts say that {} rows were accepted", self.accepted);
                Difference::new(format!("files: {says}, but the topic has {records} records"))
            };
            differences.add(Kind::Receipt, what);
        }
        let told = |name: &String| self.refused.get(name).map_or(0, |refused| refused.sum);
        let without = letters.iter().map(|(name, found)| found.saturating_sub(told(name)));
        report::Receipts { count: self.count, accepted: self.accepted, refused_rows_without: without.sum() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn receipts(of: &[(&str, u64, u64)]) -> Receipts {
        let (mut receipts, mut differences) = (Receipts::default(), Differences::default());
        for (file, accepted, refused) in of {
            let rows = accepted + refused;
            let receipt = json!({"file": file, "rows": rows, "accepted": accepted, "refused": refused});
            receipts.add(Path::new("r"), &receipt, &mut differences);
        }
        assert_eq!(differences.lines(), [""; 0]);
        receipts
    }

    fn compared(receipts: &Receipts, letters: &[(&str, u64)], records: u64) -> (u64, Vec<String>) {
        let letters = letters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut differences = Differences::default();
        let beyond = receipts.compare(&letters, records, &mut differences);
        (beyond.refused_rows_without, differences.lines())
    }

    #[test]
    fn every_refusal_of_a_receipt_must_be_on_the_errors_topic() {
        // a.csv came twice as it is, b.csv with other content
        let receipts = receipts(&[("a.csv", 5, 3), ("a.csv", 5, 3), ("b.csv", 5, 1), ("b.csv", 5, 2), ("c.csv", 1, 0)]);
        assert_eq!(compared(&receipts, &[("a.csv", 3), ("b.csv", 3)], 21), (0, vec![]));
        assert_eq!(compared(&receipts, &[("a.csv", 3), ("b.csv", 2)], 21), (0, vec![]));
        let missing = "files: a receipt of a.csv says that 3 rows were refused, the errors topic has 2 of it";
        assert_eq!(compared(&receipts, &[("a.csv", 2), ("b.csv", 3)], 21), (0, vec![missing.into()]));
        let missing = "files: a receipt of b.csv says that 2 rows were refused, the errors topic has 0 of it";
        assert_eq!(compared(&receipts, &[("a.csv", 3)], 21), (0, vec![missing.into()]));
    }

    #[test]
    fn refusals_without_a_receipt_are_counted() {
        let receipts = receipts(&[("a.csv", 5, 3)]);
        assert_eq!(compared(&receipts, &[("a.csv", 5), ("by-hand.csv", 4)], 5), (6, vec![]));
    }

    #[test]
    fn every_accepted_row_must_be_on_the_topic() {
        let receipts = receipts(&[("a.csv", 5, 0), ("b.csv", 6, 0)]);
        assert_eq!(compared(&receipts, &[], 12), (0, vec![]));
        let missing = "files: the receipts say that 11 rows were accepted, but the topic has 10 records";
        assert_eq!(compared(&receipts, &[], 10), (0, vec![missing.into()]));
    }

    #[test]
    fn without_a_directory_there_is_nothing_to_check() {
        let mut differences = Differences::default();
        let none = Receipts::read(Path::new("/no/such/directory"), &mut differences).expect("read");
        assert!(none.is_none());
    }
}
