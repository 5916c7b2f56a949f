//! Every service has a folder of migrations, and the database one list of those that have run.

use std::{collections::BTreeMap, fs, path::Path};

#[test]
fn a_version_is_used_once_over_all_folders() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let mut versions = BTreeMap::new();
    for folder in fs::read_dir(folders).expect("migrations").map(|folder| folder.expect("a folder").path()) {
        for file in fs::read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()) {
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            let version: u32 = name.split('_').next().and_then(|version| version.parse().ok()).expect("NNNN_name.sql");
            assert_eq!(versions.insert(version, file.clone()), None, "{} has the same version", file.display());
        }
    }
    assert!(versions.len() >= 4, "{versions:?}");
}
