//! Files that the importer has not finished, from the import directory alone.

use std::{collections::BTreeSet, fs, io, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize)]
pub(super) struct Files {
    /// Files in `input/` of which nothing is acknowledged yet; `None` when the directory is not here.
    pub(super) not_begun: Option<usize>,
    pub(super) in_progress: Vec<InProgress>,
}

/// A file that is being imported.
#[derive(Debug, Serialize)]
pub(super) struct InProgress {
    pub(super) file: String,
    /// Rows that Kafka has acknowledged.
    pub(super) accepted: u64,
    pub(super) refused: u64,
    /// How far it is, in the unpacked text.
    pub(super) byte: u64,
    /// The size of the file in `input/`; of a `.csv.gz` packed.
    pub(super) bytes: Option<u64>,
    pub(super) started_at: String,
}

/// What is needed of `progress/KEY.json`.
#[derive(Deserialize)]
struct Progress {
    file: String,
    accepted: u64,
    refused: u64,
    started_at: String,
    /// While it is being read.
    byte: Option<u64>,
    /// Once it is read to its end.
    bytes: Option<u64>,
}

impl Files {
    pub(super) fn read(directory: &Path, unknown: &mut Vec<String>) -> Files {
        read(directory, unknown).unwrap_or_else(|error| {
            unknown.push(format!("files: {error:#}"));
            Files::default()
        })
    }
}

fn read(directory: &Path, unknown: &mut Vec<String>) -> Result<Files> {
    let input = directory.join("input");
    // first: a file that is finished meanwhile leaves both
    let mut in_progress = Vec::new();
    for name in
        names(&directory.join("progress"))?.iter().filter(|name| name.ends_with(".json") && !name.starts_with('.'))
    {
        let path = directory.join("progress").join(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.with_context(|| path.display().to_string())?,
        };
        // one that the power cut in two counts for the importer as missing
        let progress: Progress = match serde_json::from_slice(&text) {
            Ok(progress) => progress,
            Err(error) => {
                unknown.push(format!("files: {}: {error}", path.display()));
                continue;
            }
        };
        let bytes = fs::metadata(input.join(&progress.file)).ok().map(|file| file.len());
        in_progress.push(InProgress {
            byte: progress.byte.or(progress.bytes).unwrap_or(0),
            file: progress.file,
            accepted: progress.accepted,
            refused: progress.refused,
            bytes,
            started_at: progress.started_at,
        });
    }
    in_progress.sort_by(|a, b| a.started_at.cmp(&b.started_at));
    let begun: BTreeSet<_> = in_progress.iter().map(|of| of.file.as_str()).collect();
    let to_come = names(&input)?.into_iter().filter(|name| is_to_be_imported(name) && !begun.contains(name.as_str()));
    Ok(Files { not_begun: Some(to_come.count()), in_progress })
}

/// As the importer decides it: not hidden, `.csv` or `.csv.gz`.
fn is_to_be_imported(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.starts_with('.') && (name.ends_with(".csv") || name.ends_with(".csv.gz"))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().with_context(|| directory.display().to_string())
}
