//! Writers that pause, where they can be detected and where they cannot.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use crate::fixture::{Fixture, HEADER, csv, gzip, row};

/// Waits for longer than `IMPORT_QUIET_MS`: the pause of the writer is what is tested.
fn pause(fixture: &Fixture, millis: u64) {
    let until = Instant::now() + Duration::from_millis(millis);
    fixture.wait("some time", || (Instant::now() > until).then_some(()));
}

#[test]
fn a_file_of_another_owner_whose_writer_pauses_is_finished_with_all_of_its_rows() {
    let mut fixture = Fixture::new().set("IMPORT_UNSURE_MS", "");
    if !fixture.start_as_another_user() {
        println!("only root can make files of another owner: not tested");
        return;
    }
    fixture.wait_for_log("importing files dropped into input/");
    let mut file = File::create(fixture.input("slow.csv")).expect("a file");
    writeln!(file, "{HEADER}").expect("written");
    for number in 0..12 {
        writeln!(file, "{}", row(number)).expect("written");
        pause(&fixture, 400);
        assert!(fixture.input("slow.csv").exists(), "finished after {} of 12 rows", number + 1);
    }
    drop(file);
    assert_eq!(fixture.counts("done", "slow.csv"), (12, 12, 0, None));
    assert_eq!(fixture.numbers(), (0..12).collect::<Vec<_>>());
}

#[test]
fn a_packed_file_of_another_owner_is_not_truncated_while_its_upload_pauses() {
    let mut fixture = Fixture::new().set("IMPORT_UNSURE_MS", "2000");
    if !fixture.start_as_another_user() {
        println!("only root can make files of another owner: not tested");
        return;
    }
    fixture.wait_for_log("importing files dropped into input/");
    let content = gzip(csv(0..1_000));
    let mut file = File::create(fixture.input("a.csv.gz")).expect("a file");
    for part in content.chunks(content.len() / 3) {
        file.write_all(part).expect("written");
        pause(&fixture, 700);
    }
    drop(file);
    assert_eq!(fixture.counts("done", "a.csv.gz"), (1_000, 1_000, 0, None));
    assert_eq!(fixture.numbers(), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn a_packed_file_that_is_written_in_several_parts_is_not_truncated_in_between() {
    let fixture = Fixture::new().set("IMPORT_UNSURE_MS", "3000").start_now();
    fixture.wait_for_log("importing files dropped into input/");
    let content = gzip(csv(0..20_000));
    for part in content.chunks(content.len() / 3 + 1) {
        // nobody has it open in between, which is known
        let mut file = File::options().create(true).append(true).open(fixture.input("a.csv.gz")).expect("a file");
        file.write_all(part).expect("written");
        drop(file);
        pause(&fixture, 700);
    }
    assert_eq!(fixture.counts("done", "a.csv.gz"), (20_000, 20_000, 0, None));
    assert_eq!(fixture.numbers(), (0..20_000).collect::<Vec<_>>(), "no row twice");
}

#[test]
fn an_unterminated_last_line_waits_for_its_end_and_is_noted_in_the_receipt() {
    for another_user in [false, true] {
        let mut fixture = Fixture::new().set("IMPORT_UNSURE_MS", "2500");
        if another_user && !fixture.start_as_another_user() {
            println!("only root can make files of another owner: not tested");
            return;
        }
        if !another_user {
            fixture.start();
        }
        fixture.wait_for_log("importing files dropped into input/");
        for (number, name) in ["line.csv", "header.csv", "nothing.csv"].into_iter().enumerate() {
            let content = csv([2 * number, 399 + number]);
            let content = content.trim_end();
            // first only "...,4" of "...,400" is written, or a part of the header, or nothing
            let cut = [content.len() - 2, HEADER.len() - 2, 0][number];
            for part in [&content[..cut], &content[cut..]] {
                let mut file = File::options().create(true).append(true).open(fixture.input(name)).expect("a file");
                file.write_all(part.as_bytes()).expect("written");
                drop(file);
                if part.len() == cut {
                    pause(&fixture, 900);
                }
            }
            let written = Instant::now();
            let receipt = fixture.receipt("done", name);
            assert!(written.elapsed() > Duration::from_secs(2), "{name}: {:?}", written.elapsed());
            assert_eq!((receipt.accepted, receipt.rows), (2, 2), "{name}");
            assert!(receipt.unterminated_last_line, "{name}");
            assert!(fixture.text(&format!("done/{name}.receipt.json")).contains("\"unterminated_last_line\": true"));
        }
        assert_eq!(fixture.numbers(), [0, 2, 4, 399, 400, 401]);
        fixture.drop_in("whole.csv", csv([500]));
        fixture.receipt("done", "whole.csv");
        assert!(!fixture.text("done/whole.csv.receipt.json").contains("unterminated_last_line"));
        assert!(!fixture.log().contains("was written to after it was finished"));
    }
}

#[test]
fn a_file_with_a_wrong_header_is_not_rejected_before_it_is_complete() {
    let fixture = Fixture::started();
    fixture.wait_for_log("importing files dropped into input/");
    let mut wrong = File::create(fixture.input("wrong.csv")).expect("a file");
    let mut corrected = File::create(fixture.input("corrected.csv")).expect("a file");
    for file in [&mut wrong, &mut corrected] {
        writeln!(file, "{}", HEADER.replace("value", "price")).expect("written");
    }
    for number in 0..5 {
        writeln!(wrong, "{}", row(number)).expect("written");
        pause(&fixture, 400);
        assert_eq!(fixture.names("rejected"), [""; 0]);
    }
    corrected.write_all_at(csv([7]).as_bytes(), 0).expect("written");
    drop((wrong, corrected));
    let receipt = fixture.receipt("rejected", "wrong.csv");
    assert_eq!(receipt.bytes, fixture.text("rejected/wrong.csv").len() as u64);
    assert!(receipt.error.is_some_and(|error| error.contains("the first line is not a header")));
    assert_eq!(fixture.counts("done", "corrected.csv"), (1, 1, 0, None));
    assert_eq!(fixture.numbers(), [7]);
    assert!(!fixture.log().contains("has grown since"), "{}", fixture.log());
}

#[test]
fn a_file_that_ends_in_a_line_break_and_is_not_being_written_is_not_delayed() {
    let fixture = Fixture::new().set("IMPORT_UNSURE_MS", "60000").start_now();
    for number in 0..3 {
        fs::write(fixture.input(format!("{number}.csv")), csv([500 + number])).expect("a file");
        fixture.receipt("done", &format!("{number}.csv"));
    }
}
