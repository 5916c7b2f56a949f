//! Whatever is blocked is reported until it is not, and blocks nothing else.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::fixture::{Fixture, csv};

/// An address with a free port.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string()
}

/// The answer of `/health`.
fn health(address: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = write!(stream, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

/// Where the refused rows of a file are collected while it is read.
fn part_of(fixture: &Fixture, name: &str) -> std::path::PathBuf {
    let key: String = Sha256::digest(name)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    fixture.path(format!("rejected/.{key}.part"))
}

#[test]
fn while_done_cannot_be_written_that_is_reported_and_new_files_are_still_imported() {
    let address = free_address();
    let fixture = Fixture::new().set("METRICS_ADDRESS", &address).start_now();
    fixture.wait_for_log("importing files dropped into input/");
    fs::rename(fixture.path("done"), fixture.path("kept")).expect("renamed");
    fs::write(fixture.path("done"), "in the way").expect("a file");
    fixture.drop_in("first.csv", csv([0]));
    fixture.wait_for_log("imported, but cannot be moved now file=\"first.csv\"");
    fixture.wait("health to say so", || {
        health(&address).contains("done: 1 imported files cannot be moved: \"first.csv\": ").then_some(())
    });
    // more than are active at the same time
    let many = 10_500;
    for number in 1..=many {
        fs::write(fixture.input(format!(".{number}")), csv([number])).expect("a file");
        fs::rename(fixture.input(format!(".{number}")), fixture.input(format!("{number}.csv"))).expect("renamed");
    }
    fixture.wait_long("rows of all files", || {
        let mut numbers = fixture.numbers();
        numbers.dedup();
        (numbers.len() == many + 1).then_some(())
    });
    assert_eq!(fixture.numbers().len(), many + 1, "no row twice");
    assert!(fixture.input("first.csv").exists());
    // input/ was listed many times by now, without an error
    assert!(health(&address).contains("imported files cannot be moved"), "{}", health(&address));

    fs::remove_file(fixture.path("done")).expect("removed");
    fs::rename(fixture.path("kept"), fixture.path("done")).expect("renamed");
    fixture.wait_long("all to be moved", || (fixture.names("done").len() == 2 * (many + 1)).then_some(()));
    fixture.wait_for_log("done is back");
    assert!(health(&address).contains("200 OK"), "{}", health(&address));
    assert_eq!(fixture.numbers().len(), many + 1, "no row twice");
}

#[test]
fn while_input_cannot_be_searched_its_files_are_reported_and_none_counts_as_deleted() {
    let address = free_address();
    let mut fixture = Fixture::new().set("METRICS_ADDRESS", &address).set("IMPORT_UNSURE_MS", "3000");
    if !fixture.start_as_another_user() {
        println!("only root can see to it: not tested");
        return;
    }
    let permit = |mode| fs::set_permissions(fixture.path("input"), fs::Permissions::from_mode(mode)).expect("chmod");
    fixture.drop_in("active.csv", csv(0..10));
    fixture.wait("its rows", || (fixture.events().len() == 10 && fixture.in_progress().len() == 1).then_some(()));
    // listing it still works
    permit(0o600);
    fixture.drop_in("next.csv", csv([10]));
    fixture.wait("health to say so", || {
        health(&address).contains("files: 2 files cannot be imported: \"active.csv\": ").then_some(())
    });
    let receipt = fixture.receipt("rejected", "next.csv");
    assert!(receipt.left_in_place && receipt.error.is_some_and(|error| error.contains("Permission denied")));
    // through several listings
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(health(&address).contains("files: 2 files cannot be imported"), "{}", health(&address));
        std::thread::sleep(Duration::from_millis(20));
    }
    fixture.kill();
    fixture.start_as_another_user();
    fixture.wait("health to say so after a restart", || {
        health(&address).contains("files: 2 files cannot be imported: \"active.csv\": ").then_some(())
    });
    assert_eq!(fixture.names("done"), [""; 0]);
    let input = fixture.path("input");
    fs::set_permissions(input, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(fixture.counts("done", "active.csv"), (10, 10, 0, None));
    assert_eq!(fixture.counts("done", "next.csv"), (1, 1, 0, None));
    assert_eq!(fixture.numbers(), (0..11).collect::<Vec<_>>(), "no row twice");
    fixture.wait("health to be good", || health(&address).contains("200 OK").then_some(()));
    assert_eq!(fixture.names("rejected"), [""; 0]);
}

#[test]
fn an_imported_file_whose_state_is_unknown_does_not_count_as_moved() {
    let mut fixture = Fixture::new();
    if !fixture.start_as_another_user() {
        println!("only root can take input/ away from the importer: not tested");
        return;
    }
    fixture.wait_for_log("importing files dropped into input/");
    fs::rename(fixture.path("done"), fixture.path("kept")).expect("renamed");
    fs::write(fixture.path("done"), "in the way").expect("a file");
    fixture.drop_in("a.csv", csv([0]));
    fixture.wait_for_log("imported, but cannot be moved now file=\"a.csv\"");
    let permit = |mode| fs::set_permissions(fixture.path("input"), fs::Permissions::from_mode(mode)).expect("chmod");
    permit(0o600);
    fs::remove_file(fixture.path("done")).expect("removed");
    fs::rename(fixture.path("kept"), fixture.path("done")).expect("renamed");
    // it is retried several times
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert_eq!((fixture.names("done"), fixture.in_progress().len()), (vec![], 1));
        std::thread::sleep(Duration::from_millis(20));
    }
    permit(0o755);
    assert_eq!(fixture.counts("done", "a.csv"), (1, 1, 0, None));
    assert_eq!(fixture.names("done"), ["a.csv", "a.csv.receipt.json"]);
    assert_eq!((fixture.names("input"), fixture.in_progress()), (vec![], vec![]));
    assert_eq!(fixture.numbers(), [0], "no row twice");
}

#[test]
fn a_file_whose_refused_rows_cannot_be_stored_pauses_and_floods_no_topic() {
    let address = free_address();
    let fixture = Fixture::new().set("METRICS_ADDRESS", &address).start_now();
    let in_the_way = part_of(&fixture, "a.csv");
    fs::create_dir(&in_the_way).expect("a directory");
    fixture.drop_in("a.csv", csv(0..1_000) + "bad\n");
    fixture.wait_for_log("its refused rows cannot be written to rejected/");
    fixture.wait("health to say so", || {
        health(&address).contains("files: 1 files cannot be imported: \"a.csv\"").then_some(())
    });
    let begun = Instant::now();
    let mut number = 2_000;
    // other files are imported, and each listing finds this one again
    while begun.elapsed() < Duration::from_secs(5) {
        let name = format!("{number}.csv");
        fixture.drop_in(&name, csv([number]));
        fixture.receipt("done", &name);
        number += 1;
    }
    assert!(health(&address).contains("files: 1 files"), "{}", health(&address));
    let numbers = fixture.numbers();
    let sent = numbers.iter().filter(|number| **number < 1_000).count();
    assert!(sent <= 2_000, "{sent} records of 1,000 rows: sent again and again");
    assert!(fixture.errors().len() <= 1, "a refusal is sent again and again, though its row cannot be stored");
    fs::remove_dir(&in_the_way).expect("removed");
    assert_eq!(fixture.counts("done", "a.csv"), (1_001, 1_000, 1, None));
    fixture.wait_for_log("files is back");
    let ids: std::collections::BTreeSet<_> =
        fixture.errors().iter().map(|record| record.headers["ce_id"].clone()).collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn what_is_acknowledged_of_a_failing_file_is_not_sent_again() {
    let fixture = Fixture::new().start_now();
    let in_the_way = part_of(&fixture, "a.csv");
    fs::create_dir(&in_the_way).expect("a directory");
    // the fault is several buffers of the file away from its beginning
    fixture.drop_in("a.csv", csv(0..20_000) + "bad\n");
    fixture.wait_for_log("its refused rows cannot be written to rejected/");
    fs::remove_dir(&in_the_way).expect("removed");
    assert_eq!(fixture.counts("done", "a.csv"), (20_001, 20_000, 1, None));
    let sent = fixture.numbers().len();
    assert!(sent < 24_000, "{sent} records of 20,000 rows");
}

#[test]
fn names_that_cannot_be_imported_do_not_starve_the_others() {
    let mut fixture = Fixture::new();
    for number in 0..25_000 {
        fs::create_dir(fixture.input(format!("{number}.csv"))).expect("a directory");
    }
    for number in 0..20 {
        fs::write(fixture.input(format!("good{number}.csv")), csv([number])).expect("a file");
    }
    fixture.start();
    fixture.wait_long("the good ones", || (fixture.numbers() == (0..20).collect::<Vec<_>>()).then_some(()));
    for number in 0..20 {
        fixture.receipt("done", &format!("good{number}.csv"));
    }
}
