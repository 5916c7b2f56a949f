//! Many files, and large ones next to small ones.

use std::{
    fs::{self, File},
    io::Write,
    time::{Duration, Instant},
};

use crate::fixture::{Fixture, HEADER, csv, gzip, row};

#[test]
fn ten_thousand_small_files_take_seconds_and_little_memory() {
    let mut fixture = Fixture::new();
    for number in 0..10_000 {
        fs::write(fixture.input(format!("{number}.csv")), csv([2 * number, 2 * number + 1])).expect("a file");
    }
    let begun = Instant::now();
    fixture.start();
    fixture
        .wait("10,000 files", || (fixture.names("input").is_empty() && fixture.in_progress().is_empty()).then_some(()));
    fixture.wait("10,000 receipts", || (fixture.names("done").len() == 20_000).then_some(()));
    println!("10,000 files took {:?}, {} KiB", begun.elapsed(), fixture.peak_kib());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
    assert_eq!(fixture.names("input"), [""; 0]);
    assert_eq!(fixture.numbers(), (0..20_000).collect::<Vec<_>>());
}

#[test]
fn a_large_file_does_not_delay_small_ones_and_takes_bounded_memory() {
    let fixture = Fixture::started();
    let mut large = std::io::BufWriter::new(File::create(fixture.input(".large")).expect("a file"));
    writeln!(large, "{HEADER}").expect("written");
    for number in 0..1_000_000 {
        writeln!(large, "{}", row(number)).expect("written");
    }
    drop(large);
    fs::rename(fixture.input(".large"), fixture.input("large.csv")).expect("renamed");
    fixture.wait("the first rows", || (fixture.text("log").contains("importing file=\"large.csv\"")).then_some(()));
    fixture.drop_in("small.csv", csv([2_000_000]));
    fixture.receipt("done", "small.csv");
    assert!(fixture.input("large.csv").exists(), "the large one is still being imported");
    assert_eq!(fixture.counts("done", "large.csv"), (1_000_000, 1_000_000, 0, None));
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
}

#[test]
fn a_file_with_only_refused_rows_takes_bounded_memory() {
    let fixture = Fixture::started();
    fixture.drop_in("bad.csv", format!("{HEADER}\n{}", "x\n".repeat(150_000)));
    assert_eq!(fixture.counts("done", "bad.csv"), (150_000, 0, 150_000, None));
    assert_eq!(fixture.text("rejected/bad.csv").lines().count(), 150_001);
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
}

#[test]
fn lines_of_commas_in_many_open_files_take_bounded_memory() {
    let fixture = Fixture::started();
    fixture.wait_for_log("importing files dropped into input/");
    let line = ",".repeat(64 * 1024) + "\n";
    let files: Vec<_> = (0..200)
        .map(|number| {
            // still being written, so that all of them are active at the same time
            let mut file = File::create(fixture.input(format!("{number}.csv"))).expect("a file");
            write!(file, "{HEADER}\n{line}").expect("written");
            file
        })
        .collect();
    fixture.wait("their refusals", || (fixture.errors().len() == 200).then_some(()));
    assert_eq!(fixture.errors()[0].json()["error"], "the line has more than 4096 fields");
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
    drop(files);
}

#[test]
fn many_packed_files_take_bounded_memory() {
    let mut fixture = Fixture::new();
    let content = gzip(csv(0..20_000));
    for number in 0..200 {
        fs::write(fixture.input(format!("{number}.csv.gz")), &content).expect("a file");
    }
    fixture.start();
    fixture.wait_long("200 receipts", || (fixture.names("done").len() == 400).then_some(()));
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
}

#[test]
fn a_second_importer_waits_until_the_first_has_ended() {
    let mut fixture = Fixture::started();
    fixture.wait_for_log("importing files dropped into input/");
    let first = fixture.importer.take();
    fixture.start();
    fixture.wait_for_log("another importer uses");
    let second = fixture.importer.take();
    fixture.importer = first;
    fixture.kill();
    fixture.importer = second;
    fixture.wait_for_log("directory is back");
    fixture.drop_in("a.csv", csv([1]));
    assert_eq!(fixture.counts("done", "a.csv"), (1, 1, 0, None));
}
