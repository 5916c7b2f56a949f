//! Writers that pause for longer than a file must be quiet, where the system can't tell of them.

use std::{
    fs::{self, File},
    io::Write,
    time::{Duration, Instant},
};

use crate::house::{HEADER, House, csv, row};

/// Waits for longer than `IMPORT_QUIET_MS`.
fn pause(house: &House) {
    let until = Instant::now() + Duration::from_millis(700);
    house.wait("some time", || (Instant::now() > until).then_some(()));
}

#[test]
fn a_last_line_without_its_line_break_waits_longer_where_writers_are_not_known() {
    let mut house = House::new();
    if !house.start_as_another_user() {
        println!("only root can make files of another owner: not tested");
        return;
    }
    house.wait_for_log("are imported");
    for (number, name) in ["line.csv", "header.csv", "nothing.csv"].into_iter().enumerate() {
        let content = csv([2 * number, 399 + number]);
        let content = content.trim_end();
        // "...,400" is written as "...,4" first, or the header in part, or nothing
        let cut = [content.len() - 2, HEADER.len() - 2, 0][number];
        let mut file = File::create(house.input(name)).expect("a file");
        file.write_all(&content.as_bytes()[..cut]).expect("written");
        pause(&house);
        file.write_all(&content.as_bytes()[cut..]).expect("written");
        drop(file);
        let written = Instant::now();
        assert_eq!(house.counts("done", name), (2, 2, 0, None), "{name}");
        assert!(written.elapsed() > Duration::from_secs(4), "{name}: {:?}", written.elapsed());
    }
    assert_eq!(house.numbers(), [0, 2, 4, 399, 400, 401]);
    // what ends with a line break is not held up; three files of one after the other are a measure
    let begun = Instant::now();
    for number in 0..3 {
        fs::write(house.input(format!("{number}.csv")), csv([500 + number])).expect("a file");
        house.receipt("done", &format!("{number}.csv"));
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[test]
fn a_file_that_grows_after_it_was_finished_is_told_of() {
    let house = House::started();
    for name in ["quiet.csv", "grows.csv"] {
        house.drop_in(name, csv([0]));
        house.receipt("done", name);
    }
    let length = csv([0]).len();
    let mut file = File::options().append(true).open(house.path("done/grows.csv")).expect("the file");
    writeln!(file, "{}", row(1)).expect("written");
    house.wait_for_log(&format!(
        "done/grows.csv was written to after it was finished: what stands from byte {length} on was not imported"
    ));
    // said once, however often it grows
    writeln!(file, "{}", row(2)).expect("written");
    for name in ["a.csv", "b.csv"] {
        house.drop_in(name, csv([5]));
        house.receipt("done", name);
    }
    pause(&house);
    assert_eq!(house.log().matches("was written to after it was finished").count(), 1);
    assert!(!house.log().contains("quiet.csv was written to"));
}
