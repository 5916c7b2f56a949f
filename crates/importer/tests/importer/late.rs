//! Files that are written to after they were finished, or between the decision and the move.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt, chown},
};

use crate::fixture::{Fixture, HEADER, csv, gzip, row};

fn append(fixture: &Fixture, name: &str, text: impl AsRef<[u8]>) {
    let mut file = File::options().append(true).open(fixture.path(name)).expect("the file");
    file.write_all(text.as_ref()).expect("written");
}

/// Waits until the receipt has these counts: rows, accepted, refused.
fn wait_for_counts(fixture: &Fixture, name: &str, counts: (u64, u64, u64)) {
    fixture.wait(&format!("{counts:?} in the receipt of {name}"), || {
        let receipt =
            serde_json::from_str::<importer::Receipt>(&fixture.read(&format!("done/{name}.receipt.json"))).ok()?;
        ((receipt.rows, receipt.accepted, receipt.refused) == counts && fixture.path("done").join(name).exists())
            .then_some(())
    });
}

#[test]
fn what_is_appended_to_a_finished_file_is_imported_from_its_receipts_byte() {
    let mut fixture = Fixture::started();
    let length = csv(0..10).len();
    fixture.drop_in("quiet.csv", csv([50]));
    fixture.drop_in("grows.csv", csv(0..10) + "bad\n");
    assert_eq!(fixture.counts("done", "grows.csv"), (11, 10, 1, None));
    assert_eq!(fixture.counts("done", "quiet.csv"), (1, 1, 0, None));
    append(&fixture, "done/grows.csv", format!("{}\nworse\n", row(10)));
    wait_for_counts(&fixture, "grows.csv", (13, 11, 2));
    fixture.wait_for_log(&format!("done/grows.csv\" byte={}", length + 4));
    let mut expected: Vec<_> = (0..11).collect();
    expected.push(50);
    assert_eq!(fixture.numbers(), expected, "no row twice");
    assert_eq!(fixture.errors().len(), 2);
    assert_eq!(fixture.names("rejected"), ["grows-2.csv", "grows.csv"]);
    assert_eq!(
        fixture.text("rejected/grows-2.csv"),
        format!("{HEADER},error\nworse,\"the line has 1 fields, the header has 6\"\n")
    );

    // also if it grows while no importer is running
    fixture.kill();
    append(&fixture, "done/grows.csv", row(11) + "\n");
    fixture.start();
    wait_for_counts(&fixture, "grows.csv", (14, 12, 2));
    let receipt = fixture.receipt("done", "grows.csv");
    assert_eq!(receipt.bytes, fixture.text("done/grows.csv").len() as u64);
    expected.insert(11, 11);
    assert_eq!(fixture.numbers(), expected, "no row twice");
    assert_eq!((fixture.names("input"), fixture.in_progress()), (vec![], vec![]));
    assert!(!fixture.log().contains("quiet.csv\" byte="));
}

#[test]
fn what_is_appended_while_the_file_cannot_be_moved_back_is_imported_once_it_can() {
    let mut fixture = Fixture::new();
    if !fixture.start_as_another_user() {
        println!("only root can take input/ away from the importer: not tested");
        return;
    }
    fixture.drop_in("a.csv", csv([0]));
    fixture.receipt("done", "a.csv");
    chown(fixture.path("input"), Some(0), None).expect("chown");
    append(&fixture, "done/a.csv", row(1) + "\n");
    fixture.wait_for_log("cannot be moved back to input/");
    chown(fixture.path("input"), Some(65_534), None).expect("chown");
    wait_for_counts(&fixture, "a.csv", (2, 2, 0));
    assert_eq!(fixture.numbers(), [0, 1]);
    assert_eq!(fixture.log().matches("cannot be moved back to input/").count(), 1, "logged once");
}

#[test]
fn a_packed_file_that_was_rejected_as_truncated_is_imported_when_the_rest_comes() {
    let fixture = Fixture::started();
    let whole = gzip(csv(0..20_000));
    let (first, rest) = whole.split_at(whole.len() / 2);
    fixture.drop_in("a.csv.gz", first);
    let receipt = fixture.receipt("rejected", "a.csv.gz");
    assert!(receipt.error.is_some_and(|error| error.contains("truncated")) && receipt.accepted > 0);
    append(&fixture, "rejected/a.csv.gz", rest);
    wait_for_counts(&fixture, "a.csv.gz", (20_000, 20_000, 0));
    assert_eq!(fixture.numbers(), (0..20_000).collect::<Vec<_>>(), "no row twice");
    assert_eq!(fixture.names("rejected"), [""; 0]);
}

#[test]
fn an_unterminated_last_line_is_read_again_as_a_whole_when_it_grows() {
    let fixture = Fixture::started();
    let content = csv([0, 399]);
    let content = content.trim_end();
    let cut = content.len() - 2;
    // "...,400" was written as "...,4"
    fixture.drop_in("a.csv", &content[..cut]);
    assert_eq!(fixture.counts("done", "a.csv"), (2, 2, 0, None));
    append(&fixture, "done/a.csv", format!("{}\n", &content[cut..]));
    fixture.wait("the whole line", || {
        let receipt = fixture.receipt("done", "a.csv");
        (receipt.bytes == content.len() as u64 + 1 && receipt.rows == 2).then_some(())
    });
    assert_eq!(fixture.numbers(), [0, 3, 399]);
    assert_eq!(fixture.errors(), []);
}

#[test]
fn a_finished_file_that_was_overwritten_is_reported_and_not_imported() {
    let fixture = Fixture::started();
    fixture.drop_in("a.csv", csv([0]));
    fixture.receipt("done", "a.csv");
    fs::write(fixture.path("done/a.csv"), csv([1, 2])).expect("written");
    fixture.wait_for_log("was changed after it was finished, and is not what was imported");
    fixture.drop_in("b.csv", csv([5]));
    fixture.receipt("done", "b.csv");
    assert_eq!(fixture.numbers(), [0, 5]);
}

#[test]
fn a_file_that_is_overwritten_before_it_could_be_moved_is_read_again() {
    let mut fixture = Fixture::started();
    fixture.wait_for_log("importing files dropped into input/");
    for restart in [false, true] {
        let (name, first) = if restart { ("b.csv", 300) } else { ("a.csv", 100) };
        fs::rename(fixture.path("done"), fixture.path("kept")).expect("renamed");
        fs::write(fixture.path("done"), "in the way").expect("a file");
        let mut content = csv(first..first + 100).into_bytes();
        fixture.drop_in(name, &content);
        fixture.wait_for_log(&format!("imported, but cannot be moved now file={name:?}"));
        // of the same length, with the same end: only the first row differs
        let other = csv([first + 100]);
        content[..other.len()].copy_from_slice(other.as_bytes());
        let file = File::options().write(true).open(fixture.input(name)).expect("the file");
        file.write_all_at(other.as_bytes(), 0).expect("written");
        drop(file);
        if restart {
            fixture.kill();
        }
        fs::remove_file(fixture.path("done")).expect("removed");
        fs::rename(fixture.path("kept"), fixture.path("done")).expect("renamed");
        if restart {
            fixture.start();
        }
        let receipt = fixture.receipt("done", name);
        assert_eq!((receipt.rows, receipt.accepted, receipt.refused), (100, 100, 0));
        assert_eq!(fs::read(fixture.path(format!("done/{name}"))).expect("the file"), content);
        let mut numbers = fixture.numbers();
        numbers.dedup();
        assert!(numbers.contains(&(first + 100)), "the new row of {name} is missing");
        fixture.wait_for_log(&format!("importing again from the beginning file={name:?} reason=\"its first "));
    }
    fixture.drop_in("other.csv", csv([900]));
    fixture.receipt("done", "other.csv");
}

/// Puts `done/` on another file system; `None` if there is none.
fn move_done_elsewhere(fixture: &Fixture) -> Option<tempfile::TempDir> {
    let elsewhere = tempfile::tempdir_in("/dev/shm").ok();
    let device = |path: &std::path::Path| fs::metadata(path).expect("a directory").dev();
    let Some(elsewhere) = elsewhere.filter(|elsewhere| device(elsewhere.path()) != device(&fixture.path("input")))
    else {
        println!("there is no second file system: not tested");
        return None;
    };
    fs::remove_dir(fixture.path("done")).expect("removed");
    std::os::unix::fs::symlink(elsewhere.path(), fixture.path("done")).expect("a link");
    Some(elsewhere)
}

fn key(name: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(name)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_copy_that_keeps_failing_is_reported_once_and_retried_after_growing_pauses() {
    let mut fixture = Fixture::new();
    let Some(_elsewhere) = move_done_elsewhere(&fixture) else { return };
    // fails like a full disk
    let in_the_way = fixture.path("done").join(format!(".{}.tmp", key("a.csv")));
    fs::create_dir(&in_the_way).expect("a directory");
    fixture.start();
    fixture.drop_in("a.csv", csv([0]));
    fixture.wait_for_log("imported, but cannot be moved now file=\"a.csv\"");
    // retries after 0.5, 1.5 and 3.5 s
    std::thread::sleep(std::time::Duration::from_secs(4));
    let log = fixture.log();
    assert_eq!(log.matches("imported, but cannot be moved now").count(), 1, "{log}");
    assert!(!log.contains("done is back"), "{log}");
    fs::remove_dir(&in_the_way).expect("removed");
    assert_eq!(fixture.counts("done", "a.csv"), (1, 1, 0, None));
    fixture.wait_for_log("done is back");
    assert_eq!(fixture.numbers(), [0]);
}

#[test]
fn done_may_be_on_another_file_system() {
    let mut fixture = Fixture::new();
    let Some(_elsewhere) = move_done_elsewhere(&fixture) else { return };
    fixture.start();
    let content = csv(0..1_000) + "bad\n";
    for name in ["a.csv", "b.csv"] {
        fixture.drop_in(name, &content);
    }
    for name in ["a.csv", "b.csv"] {
        assert_eq!(fixture.counts("done", name), (1_001, 1_000, 1, None));
        assert_eq!(fixture.text(&format!("done/{name}")), content);
    }
    assert_eq!(fixture.names("input"), [""; 0]);
    // killed after the copy got its name, and before the original was removed
    let stored = fixture.text("done/a.csv.receipt.json");
    fixture.kill();
    fs::copy(fixture.path("done/a.csv"), fixture.input("a.csv")).expect("a copy");
    fs::remove_file(fixture.path("done/a.csv.receipt.json")).expect("removed");
    let found = fs::metadata(fixture.input("a.csv")).expect("the file");
    let mut record: serde_json::Value = serde_json::from_str(&stored).expect("JSON");
    let modified = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    record["resume"]["state"] = serde_json::json!({
        "device": found.dev(), "inode": found.ino(), "size": found.size(), "modified_ns": modified,
    });
    fs::write(fixture.path(format!("progress/{}.json", key("a.csv"))), record.to_string()).expect("a record");
    fixture.start();
    fixture.wait_for_log("imported before the restart, moved now file=\"a.csv\"");
    assert_eq!(fixture.names("done"), ["a.csv", "a.csv.receipt.json", "b.csv", "b.csv.receipt.json"]);
    assert_eq!((fixture.names("input"), fixture.in_progress()), (vec![], vec![]));
}
