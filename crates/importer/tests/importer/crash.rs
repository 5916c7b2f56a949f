//! SIGKILL at any moment: after the restart every row is on the topic, only rows in flight are
//! repeated, with the same content, and the file is finished.

use std::{collections::HashMap, fs, time::Duration};

use sha2::{Digest, Sha256};

use crate::fixture::{Fixture, Record, csv, gzip};

/// Kills and restarts until all files are finished; returns the number of kills. Each kill comes when `rows`
/// more rows than at the last one are recorded as acknowledged.
fn survive(fixture: &mut Fixture, done: &[&str], rows: u64, pauses: &mut dyn Iterator<Item = u64>) -> usize {
    let mut kills = 0;
    let mut before: Vec<String> = Vec::new();
    fixture.start();
    loop {
        let finished = || done.iter().all(|name| fixture.path("done").join(format!("{name}.receipt.json")).exists());
        match pauses.next() {
            Some(pause) if !finished() => {
                // more is acknowledged, and more is in flight
                fixture.wait("it to go on", || {
                    let now: Vec<_> =
                        fixture.in_progress().iter().map(|name| fixture.read(&format!("progress/{name}"))).collect();
                    let further = now.iter().any(|record| {
                        let accepted = serde_json::from_str::<serde_json::Value>(record).ok();
                        let accepted = accepted.and_then(|record| record["accepted"].as_u64());
                        accepted.is_some_and(|accepted| accepted >= rows * (kills as u64 + 1))
                            && !before.contains(record)
                    });
                    (further || finished()).then(|| before = now)
                });
                // the kill is to come at a random moment, so there is no condition to wait for
                std::thread::sleep(Duration::from_millis(pause));
                fixture.kill();
                kills += 1;
                fixture.start();
            }
            _ => break,
        }
    }
    for name in done {
        fixture.receipt("done", name);
    }
    kills
}

/// Pauses from a seed.
fn pauses(mut seed: u64, count: usize) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % 60
    })
    .take(count)
}

/// Checks that each row is there at least once, and that repeats are the same record.
fn check(records: &[Record], rows: usize) -> usize {
    let mut found: HashMap<String, &Record> = HashMap::new();
    for record in records {
        let first = found.entry(record.payload.clone()).or_insert(record);
        assert_eq!(*first, record);
    }
    assert_eq!(found.len(), rows, "every row is there, and no other");
    records.len() - rows
}

#[test]
fn kills_at_random_moments_lose_no_row_and_the_file_is_finished() {
    let rows = 400_000;
    for seed in [1, 2] {
        println!("seed {seed}");
        let mut fixture = Fixture::new();
        fixture.drop_in("a.csv", csv(0..rows));
        let kills = survive(&mut fixture, &["a.csv"], 80_000, &mut pauses(seed, 4));
        let receipt = fixture.receipt("done", "a.csv");
        assert_eq!((receipt.rows, receipt.accepted, receipt.error.as_deref()), (rows as u64, rows as u64, None));
        let repeated = check(&fixture.events(), rows);
        println!("{kills} kills, {repeated} rows repeated");
        // what may be read ahead of the first unacknowledged row (60,000), and what is acknowledged within
        // 50 ms; from the beginning each time it would be 80,000 + 160,000 + 240,000 + 320,000
        assert_eq!(kills, 4);
        assert!(repeated <= kills * 100_000, "{repeated} of {rows} rows repeated in {kills} kills");
        assert_eq!(fixture.in_progress(), [""; 0]);
    }
}

#[test]
fn what_is_acknowledged_is_not_sent_again_after_a_kill() {
    let mut fixture = Fixture::started();
    let half: String = csv(0..5_000);
    let file = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), &half).expect("written");
    fixture.wait("the progress", || {
        let record =
            fixture.names("progress").into_iter().find(|name| name.ends_with(".json") && !name.starts_with('.'))?;
        fixture.text(&format!("progress/{record}")).contains("\"accepted\":5000").then_some(())
    });
    fixture.kill();
    fs::write(fixture.input("a.csv"), csv(0..6_000) + "bad\n").expect("written");
    drop(file);
    fixture.start();
    assert_eq!(fixture.counts("done", "a.csv"), (6_001, 6_000, 1, None));
    assert_eq!(check(&fixture.events(), 6_000), 0);
    assert_eq!(fixture.errors()[0].json()["line"], 6_002);
}

#[test]
fn a_file_that_was_changed_before_the_restart_is_read_from_its_beginning() {
    let mut fixture = Fixture::started();
    let file = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv(0..50)).expect("written");
    fixture.wait("the progress", || (!fixture.in_progress().is_empty()).then_some(()));
    fixture.kill();
    fs::write(fixture.input("a.csv"), csv(100..200)).expect("written");
    drop(file);
    fixture.start();
    assert_eq!(fixture.counts("done", "a.csv"), (100, 100, 0, None));
    fixture.wait_for_log("importing again from the beginning");
    assert_eq!(fixture.numbers(), (0..50).chain(100..200).collect::<Vec<_>>());
}

#[test]
fn packed_files_and_refused_rows_survive_kills_too() {
    let mut fixture = Fixture::new();
    let rows = 60_000;
    let content: String = csv(0..rows).replace(",99,", ",x,") + "bad\n";
    let bad = content.lines().filter(|line| line.contains(",x,")).count() + 1;
    fixture.drop_in("a.csv.gz", gzip(&content));
    fixture.drop_in("b.csv", csv([rows]).replace("incoming", "nothing"));
    survive(&mut fixture, &["a.csv.gz", "b.csv"], 0, &mut pauses(3, 4));
    let receipt = fixture.receipt("done", "a.csv.gz");
    assert_eq!((receipt.rows, receipt.refused), (rows as u64 + 1, bad as u64));
    assert_eq!(fixture.text("rejected/a.csv").lines().count(), bad + 1);
    assert_eq!(fixture.text("rejected/b.csv").lines().count(), 2);
    check(&fixture.events(), rows + 1 - bad);
}

#[test]
fn a_progress_record_that_cannot_be_read_is_kept_and_nothing_is_sent_again() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mut fixture = Fixture::new();
    if !fixture.start_as_another_user() {
        println!("only root can make a file that the importer cannot read: not tested");
        return;
    }
    fixture.drop_in("a.csv", csv(0..10));
    assert_eq!(fixture.counts("done", "a.csv"), (10, 10, 0, None));
    fixture.kill();
    // as after a kill just before the file was moved
    let key: String = Sha256::digest("a.csv")[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let record = fixture.path(format!("progress/{key}.json"));
    fs::rename(fixture.path("done/a.csv"), fixture.input("a.csv")).expect("renamed");
    fs::rename(fixture.path("done/a.csv.receipt.json"), &record).expect("renamed");
    chown(&record, Some(0), None).expect("chown");
    fs::set_permissions(&record, fs::Permissions::from_mode(0o600)).expect("chmod");
    fixture.start_as_another_user();
    fixture.wait_for_log("stays in input/ file=\"a.csv\" reason=\"its progress record cannot be read: ");
    assert!(record.exists() && fixture.input("a.csv").exists());
    fs::set_permissions(&record, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(fixture.counts("done", "a.csv"), (10, 10, 0, None));
    assert_eq!(fixture.numbers(), (0..10).collect::<Vec<_>>(), "nothing is sent again");
    assert_eq!((fixture.names("input"), fixture.in_progress()), (vec![], vec![]));
}
