use super::*;
use crate::{directory::rename, mark::Mark, receipt::Stored};

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

fn text(finished: &Finished) -> String {
    String::from_utf8(finished.text().expect("JSON")).expect("a text")
}

/// A file whose end is begun.
fn begun(directory: &Directory) -> Finished {
    let name = OsStr::new("a.csv");
    fs::write(directory.input.join(name), "the file").expect("written");
    // the last process sent more than was acknowledged, and was killed
    fs::write(directory.refused_of(name), "refused rows, and more").expect("written");
    let progress = Progress::new("a.csv".into(), name_to_hex(name), &Mark::default(), "then".into());
    let state = found(&directory.input.join(name)).expect("the file");
    let ending = Ending { accepted: 1, refused: 1, refused_bytes: 12, whole: (8, "5a".into()), ..Ending::default() };
    let finished = decide(directory, progress, Some("stock"), state, &ending, "now".into()).expect("decided");
    begin(directory, &finished).expect("begun");
    finished
}

/// What a new process finds.
fn left(directory: &Directory) -> Finished {
    match Stored::read(&directory.progress_of(OsStr::new("a.csv"))) {
        Some(Stored::Finished(finished)) => *finished,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_that_another_file_took_before_the_end_could_be_carried_out_is_left_to_it() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = Directory::create(root.path()).expect("its folders");
    let mut late = begun(&directory);
    for name in ["done/a.csv", "done/a.csv.receipt.json", "rejected/a.csv"] {
        fs::write(root.path().join(name), "another's").expect("written");
    }
    assert!(complete(&directory, &mut late.clone()).is_err(), "nothing is replaced");
    assert_eq!(complete_again(&directory, &mut late).expect("completed"), End::Complete);
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
fn an_end_that_was_cut_short_anywhere_is_completed_and_a_new_file_of_that_name_is_left_alone() {
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
        let finished = begun(&directory);
        steps[..cut].iter().for_each(|step| step(&directory));
        if cut < steps.len() {
            let mut left = left(&directory);
            assert_eq!(left, finished);
            assert_eq!(complete_again(&directory, &mut left).expect("completed"), End::Complete);
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
    let mut finished = begun(&directory);
    fs::write(directory.input.join("a.csv"), "the FILE").expect("written");
    assert_eq!(complete(&directory, &mut finished).expect("seen"), End::Changed);
    let names: Vec<_> = everything(root.path()).into_iter().map(|(name, _)| name).collect();
    let key = crate::names::key(OsStr::new("a.csv"));
    assert_eq!(names, ["input/a.csv".into(), format!("progress/{key}.json"), format!("rejected/.{key}.part")]);
}
