use super::*;
use crate::{directory::rename, progress::Record, read::position::Position};

/// All files and what is in them.
fn everything(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["done", "input", "progress", "rejected"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(&path).expect("a text")));
        }
    }
    found.sort();
    found
}

fn text(finished: &FinishRecord) -> String {
    String::from_utf8(finished.text().expect("JSON")).expect("a text")
}

/// A file whose finish record is written.
fn with_record(directory: &Directory) -> FinishRecord {
    with_record_of(directory, &Reserved::new(), "a.csv", "the file")
}

fn with_record_of(directory: &Directory, reserved: &Reserved, name: &str, content: &str) -> FinishRecord {
    let name = OsStr::new(name);
    fs::write(directory.input.join(name), content).expect("written");
    // the previous process sent more than was acknowledged, and was killed
    fs::write(directory.refused_of(name), "refused rows, and more").expect("written");
    let progress = Progress::new(name, (&Position::default()).into(), "then".into());
    let state = state_of(&directory.input.join(name)).expect("the file");
    let whole = WholeFile { bytes: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) };
    let summary = FileSummary { accepted: 1, refused: 1, refused_bytes: 12, whole, ..FileSummary::default() };
    let finished = plan(directory, reserved, progress, Some("stock"), state, &summary, "now".into());
    write_record(directory, &finished).expect("written");
    finished
}

/// The record that a new process finds.
fn left(directory: &Directory) -> FinishRecord {
    match Record::read(&directory.progress_of(OsStr::new("a.csv"))) {
        Ok(Some(Record::Finishing(finished))) => *finished,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_that_another_file_took_before_the_finish_could_be_carried_out_is_left_to_it() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = Directory::create(root.path()).expect("its folders");
    let mut late = with_record(&directory);
    for name in ["done/a.csv", "done/a.csv.receipt.json", "rejected/a.csv"] {
        fs::write(root.path().join(name), "another's").expect("written");
    }
    assert!(carry_out(&directory, &mut late.clone()).is_err(), "nothing is replaced");
    assert_eq!(
        replan_and_carry_out(&directory, &Reserved::new(), &mut late).expect("completed"),
        FinishResult::Finished
    );
    assert_eq!(late.receipt.rejected.as_deref(), Some("a-2.csv"));
    let mut expected = vec![
        ("done/a-2.csv".to_owned(), "the file".to_owned()),
        ("done/a-2.csv.receipt.json".into(), text(&late)),
        ("rejected/a-2.csv".into(), "refused rows".into()),
    ];
    for name in ["done/a.csv", "done/a.csv.receipt.json", "rejected/a.csv"] {
        expected.push((name.into(), "another's".into()));
    }
    expected.sort();
    assert_eq!(everything(root.path()), expected);
}

#[test]
fn a_finish_that_was_interrupted_anywhere_is_completed_and_a_new_file_of_that_name_is_left_alone() {
    let steps: [fn(&Directory); 4] = [
        |at| {
            rename(&at.input.join("a.csv"), &at.done.join("a.csv")).expect("renamed");
            fs::write(at.input.join("a.csv"), "the next file").expect("written");
        },
        |at| {
            let refused = at.refused_of(OsStr::new("a.csv"));
            File::options().write(true).open(refused).expect("a file").set_len(12).expect("cut");
        },
        |at| rename(&at.refused_of(OsStr::new("a.csv")), &at.rejected.join("a.csv")).expect("renamed"),
        |at| {
            let receipt = at.done.join("a.csv.receipt.json");
            rename(&at.progress_of(OsStr::new("a.csv")), &receipt).expect("renamed");
        },
    ];
    for cut in 0..=steps.len() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::create(root.path()).expect("its folders");
        let finished = with_record(&directory);
        steps[..cut].iter().for_each(|step| step(&directory));
        if cut < steps.len() {
            let mut left = left(&directory);
            assert_eq!(left, finished);
            assert_eq!(
                replan_and_carry_out(&directory, &Reserved::new(), &mut left).expect("completed"),
                FinishResult::Finished
            );
        }
        let mut expected = vec![
            ("done/a.csv".to_owned(), "the file".to_owned()),
            ("done/a.csv.receipt.json".into(), text(&finished)),
            ("rejected/a.csv".into(), "refused rows".into()),
        ];
        if cut > 0 {
            expected.insert(2, ("input/a.csv".into(), "the next file".into()));
        }
        assert_eq!(everything(root.path()), expected, "cut after {cut} steps");
    }
}

#[test]
fn a_file_that_was_written_to_after_it_was_read_is_not_moved() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = Directory::create(root.path()).expect("its folders");
    let mut finished = with_record(&directory);
    fs::write(directory.input.join("a.csv"), "the FILE").expect("written");
    assert_eq!(carry_out(&directory, &mut finished).expect("seen"), FinishResult::Changed);
    let names: Vec<_> = everything(root.path()).into_iter().map(|(name, _)| name).collect();
    let key = crate::directory::names::key(OsStr::new("a.csv"));
    assert_eq!(names, ["input/a.csv".into(), format!("progress/{key}.json"), format!("rejected/.{key}.part")]);
}

/// An import directory whose `done/` is on another file system; `None` if there is none.
fn with_done_elsewhere(root: &Path) -> Option<(Directory, tempfile::TempDir)> {
    let elsewhere = tempfile::tempdir_in("/dev/shm").ok()?;
    let device = |path: &Path| state_of(path).map(|state| state.identity.device);
    if device(elsewhere.path()) == device(root) {
        println!("there is no second file system: not tested");
        return None;
    }
    std::os::unix::fs::symlink(elsewhere.path(), root.join("done")).expect("a link");
    Some((Directory::create(root).expect("its folders"), elsewhere))
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).expect("a text")
}

#[test]
fn files_that_are_copied_at_the_same_time_share_neither_a_name_nor_a_temporary_copy() {
    let root = tempfile::tempdir().expect("a directory");
    let Some((directory, _elsewhere)) = with_done_elsewhere(root.path()) else { return };
    fs::write(directory.done.join("a.csv"), "another's").expect("written");
    let mut reserved = Reserved::new();
    let mut pending = Vec::new();
    for (name, content) in [("a.csv", "the first"), ("a-2.csv", "the second")] {
        let mut finished = with_record_of(&directory, &reserved, name, content);
        let Ok(FinishResult::NeedsCopy { from, copy, to }) = carry_out(&directory, &mut finished) else {
            panic!("{name}")
        };
        reserved.insert(name.into(), to.clone());
        pending.push((finished, from, copy, to));
    }
    // the first copy is complete, the second one is being written
    fs::copy(&pending[0].1, &pending[0].2).expect("copied");
    fs::write(&pending[1].2, "the s").expect("written");
    assert_eq!(carry_out_copied(&directory, &reserved, &mut pending[0].0).expect("completed"), FinishResult::Finished);
    fs::copy(&pending[1].1, &pending[1].2).expect("copied");
    assert_eq!(carry_out_copied(&directory, &reserved, &mut pending[1].0).expect("completed"), FinishResult::Finished);
    assert_eq!(text_of(&pending[0].3), "the first");
    assert_eq!(text_of(&pending[1].3), "the second");
    assert_eq!(text_of(&directory.done.join("a.csv")), "another's");
    assert_eq!(fs::read_dir(&directory.input).expect("input").count(), 0);
}

#[test]
fn a_file_of_the_same_size_does_not_count_as_the_copy() {
    let root = tempfile::tempdir().expect("a directory");
    let Some((directory, _elsewhere)) = with_done_elsewhere(root.path()) else { return };
    let mut finished = with_record(&directory);
    fs::write(directory.done.join("a.csv"), "THE FILE").expect("written");
    let end = replan_and_carry_out(&directory, &Reserved::new(), &mut finished).expect("decided");
    assert!(matches!(end, FinishResult::NeedsCopy { ref to, .. } if to.ends_with("a-2.csv")), "{end:?}");
    assert_eq!(text_of(&directory.input.join("a.csv")), "the file");
    // its own copy does
    fs::write(directory.done.join("a-2.csv"), "the file").expect("written");
    assert_eq!(
        replan_and_carry_out(&directory, &Reserved::new(), &mut finished).expect("completed"),
        FinishResult::Finished
    );
    assert!(!directory.input.join("a.csv").exists());
}

#[test]
fn a_file_that_is_written_to_while_its_copy_gets_its_name_is_kept() {
    let root = tempfile::tempdir().expect("a directory");
    let [from, copy, to] = ["from", "copy", "to"].map(|name| root.path().join(name));
    fs::write(&from, "rows").expect("written");
    fs::write(&copy, "rows").expect("written");
    let state = state_of(&from).expect("the file");
    fs::write(&from, "rows, and more").expect("written");
    assert!(!replace(&from, &copy, &to, state).expect("compared"));
    assert_eq!((text_of(&from).as_str(), copy.exists(), to.exists()), ("rows, and more", false, false));
}

#[test]
fn a_copy_is_removed_when_its_file_was_changed() {
    let root = tempfile::tempdir().expect("a directory");
    let Some((directory, _elsewhere)) = with_done_elsewhere(root.path()) else { return };
    let mut finished = with_record(&directory);
    let Ok(FinishResult::NeedsCopy { from, copy, .. }) = carry_out(&directory, &mut finished) else {
        panic!("not elsewhere")
    };
    fs::copy(&from, &copy).expect("copied");
    fs::write(&from, "the file, and more").expect("written");
    assert_eq!(carry_out_copied(&directory, &Reserved::new(), &mut finished).expect("compared"), FinishResult::Changed);
    assert_eq!(text_of(&from), "the file, and more");
    assert_eq!(fs::read_dir(&directory.done).expect("done").count(), 0);
}
