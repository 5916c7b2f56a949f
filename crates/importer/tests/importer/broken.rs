//! Corrupt files and invalid rows: each gets a clear error, and the next file is imported.

use std::{
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::fixture::{Fixture, HEADER, csv, gzip, row};

/// The next file is imported.
fn the_next_file_is_imported(fixture: &Fixture) {
    fixture.drop_in("next.csv", csv([77]));
    assert_eq!(fixture.counts("done", "next.csv"), (1, 1, 0, None));
    assert!(fixture.numbers().contains(&77));
}

#[test]
fn an_invalid_row_affects_no_other() {
    let fixture = Fixture::started();
    let mut content = csv([0]).into_bytes();
    content.extend_from_slice(b"a,\"b,c,d,e,f\n");
    content.extend_from_slice(&[&row(1).as_bytes()[..60], b"\0", &row(1).as_bytes()[60..], b"\n"].concat());
    content.extend_from_slice(b"\xff\xfe,incoming,2019-04-14T03:47:13Z,1,1,1\n");
    content.extend_from_slice(row(2).as_bytes());
    fixture.drop_in("a.csv", &content);
    assert_eq!(fixture.counts("done", "a.csv"), (5, 2, 3, None));
    assert_eq!(fixture.numbers(), [0, 2]);
    let errors: Vec<_> =
        fixture.errors().iter().map(|record| record.json()["error"].as_str().map(str::to_owned)).collect();
    assert_eq!(
        errors.into_iter().flatten().collect::<Vec<_>>(),
        [
            "the quote that opens at byte 3 of the line is never closed",
            "the line holds a NUL byte at its byte 61",
            "transaction_id: \"\u{fffd}\u{fffd}\" is not valid UTF-8",
        ]
    );
    let rejected = fs::read(fixture.path("rejected/a.csv")).expect("the refused rows");
    assert!(memchr::memmem::find(&rejected, b"\xff\xfe,incoming").is_some(), "original bytes are kept");
    the_next_file_is_imported(&fixture);
}

#[test]
fn a_line_of_200_mb_is_refused_with_its_first_bytes_in_bounded_memory() {
    let fixture = Fixture::started();
    let mut content = csv([0]).into_bytes();
    content.extend(std::iter::repeat_n(b'x', 200_000_000));
    content.extend_from_slice(format!("\n{}\n", row(1)).as_bytes());
    fixture.drop_in("long.csv", &content);
    fixture.drop_in("long.csv.gz", gzip(&content));
    drop(content);
    assert_eq!(fixture.counts("done", "long.csv"), (3, 2, 1, None));
    assert_eq!(fixture.counts("done", "long.csv.gz"), (3, 2, 1, None));
    let error = fixture.errors()[0].json();
    assert_eq!(error["error"], "the line is longer than 65536 bytes, these are its first 1000");
    assert_eq!((error["line"].as_u64(), error["raw"].as_str().map(str::len)), (Some(3), Some(1_000)));
    assert_eq!(fixture.numbers(), [0, 0, 1, 1]);
    assert!(fixture.peak_kib() < 64 * 1024, "{} KiB", fixture.peak_kib());
}

#[test]
fn a_file_that_cannot_be_read_goes_to_rejected_with_its_reason() {
    let fixture = Fixture::started();
    let expected = format!("; expected {HEADER}");
    let cases = [
        ("empty.csv", String::new(), "the file is empty".to_owned()),
        ("blank.csv", "\n\r\n  \n".into(), "the file has no header line, only blank ones".into()),
        (
            "headless.csv",
            row(1) + "\n",
            format!("the first line is not a header of a known kind of event: {:?}{expected}", row(1)),
        ),
        (
            "unknown.csv",
            "a;b\n1;2\n".into(),
            format!(
                "the first line is not a header of a known kind of event: \"a;b\" (the columns must be separated by commas){expected}"
            ),
        ),
        (
            "wide.csv",
            format!("{HEADER},{}\n", ",".repeat(8 * 1024)),
            "the header line is longer than 8192 bytes".into(),
        ),
        ("twice.csv", format!("{HEADER},value\n"), "the header names the column value twice".into()),
        ("not.csv.gz", csv([1]), "the gzip file is corrupt after 0 unpacked bytes: invalid gzip header".into()),
    ];
    for (name, content, error) in &cases {
        fixture.drop_in(name, content);
        let receipt = fixture.receipt("rejected", name);
        assert_eq!((receipt.rows, receipt.error.as_ref()), (0, Some(error)), "{name}");
        assert_eq!((receipt.bytes, fixture.text(&format!("rejected/{name}"))), (content.len() as u64, content.clone()));
        fixture.wait_for_log(error.split('"').next().expect("a text"));
    }
    assert_eq!((fixture.events(), fixture.errors()), (vec![], vec![]));
    fixture.drop_in("header.csv", HEADER);
    assert_eq!(fixture.counts("done", "header.csv"), (0, 0, 0, None));
    the_next_file_is_imported(&fixture);
}

#[test]
fn the_rows_before_a_corrupt_part_of_a_gzip_file_are_imported_and_counted() {
    let fixture = Fixture::started();
    let whole = gzip(csv(0..5_000));
    fixture.drop_in("truncated.csv.gz", &whole[..whole.len() - 2_000]);
    let receipt = fixture.receipt("rejected", "truncated.csv.gz");
    let error = receipt.error.expect("an error");
    assert!(error.starts_with("the gzip file is truncated after "), "{error}");
    assert!(receipt.accepted > 1_000 && receipt.refused == 0, "{} accepted", receipt.accepted);
    assert_eq!(receipt.bytes, whole.len() as u64 - 2_000);
    assert_eq!(fixture.numbers(), (0..receipt.accepted as usize).collect::<Vec<_>>());

    let mut broken = whole.clone();
    let middle = broken.len() / 2;
    broken[middle..middle + 50].fill(0xaa);
    fixture.drop_in("broken.csv.gz", &broken);
    let error = fixture.receipt("rejected", "broken.csv.gz").error.expect("an error");
    assert!(error.starts_with("the gzip file is corrupt after "), "{error}");

    fixture.drop_in("members.csv.gz", [gzip(csv(0..3)), gzip(row(3) + "\n")].concat());
    assert_eq!(fixture.counts("done", "members.csv.gz"), (4, 4, 0, None));
    the_next_file_is_imported(&fixture);
}

#[test]
fn what_is_not_a_file_stays_in_input_until_it_is_one() {
    let fixture = Fixture::new().set("IMPORT_FOLLOW_LINKS", "true").start_now();
    fs::create_dir(fixture.input("directory.csv")).expect("a directory");
    symlink(fixture.path("nowhere"), fixture.input("link.csv")).expect("a link");
    let pipe = CString::new(fixture.input("pipe.csv").as_os_str().as_bytes()).expect("a path");
    // SAFETY: a system call on a path that lives longer
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let cases = [
        ("directory.csv", "is a directory"),
        ("link.csv", "is a broken symbolic link"),
        ("pipe.csv", "is a named pipe"),
    ];
    for (name, error) in cases {
        let receipt = fixture.receipt("rejected", name);
        assert_eq!((receipt.error.as_deref(), receipt.left_in_place), (Some(error), true));
        assert!(fixture.input(name).symlink_metadata().is_ok());
    }
    the_next_file_is_imported(&fixture);
    fs::write(fixture.path("nowhere"), csv([5])).expect("a file");
    assert_eq!(fixture.counts("done", "link.csv"), (1, 1, 0, None));
    fixture.wait("its receipt to go", || {
        (!fixture.names("rejected").contains(&"link.csv.receipt.json".into())).then_some(())
    });
    assert_eq!(fixture.log().matches("is a directory").count(), 1, "logged once");
}

#[test]
fn a_symbolic_link_is_rejected_and_nothing_is_read_from_its_target() {
    let fixture = Fixture::started();
    fs::write(fixture.path("secret"), "the first line of a secret\nthe second\n").expect("a file");
    symlink(fixture.path("secret"), fixture.input("link.csv")).expect("a link");
    let receipt = fixture.receipt("rejected", "link.csv");
    let error = "is a symbolic link, which IMPORT_FOLLOW_LINKS does not allow";
    assert_eq!((receipt.error.as_deref(), receipt.left_in_place), (Some(error), true));
    // nor if a file is replaced by one while it is being read
    let held = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv([0])).expect("written");
    fixture.wait("its row", || (fixture.events().len() == 1).then_some(()));
    symlink(fixture.path("secret"), fixture.input(".a")).expect("a link");
    fs::rename(fixture.input(".a"), fixture.input("a.csv")).expect("replaced");
    assert_eq!(fixture.receipt("rejected", "a.csv").error.as_deref(), Some(error));
    drop(held);
    the_next_file_is_imported(&fixture);
    for name in fixture.names("rejected").iter().chain(&fixture.names("done")) {
        let folder = if fixture.path("rejected").join(name).exists() { "rejected" } else { "done" };
        assert!(!fixture.text(&format!("{folder}/{name}")).contains("secret"), "{name}");
    }
    assert!(!fixture.log().contains("the first line"), "{}", fixture.log());
    fs::remove_file(fixture.input("link.csv")).expect("removed");
    fixture.drop_in("link.csv", csv([5]));
    assert_eq!(fixture.counts("done", "link.csv"), (1, 1, 0, None));
}

#[test]
fn a_file_that_cannot_be_read_for_now_is_reported_once() {
    let fixture = Fixture::new().set("IMPORT_FOLLOW_LINKS", "true").start_now();
    // reading its first byte is always an EIO
    symlink("/proc/self/mem", fixture.input("mem.csv")).expect("a link");
    let receipt = fixture.receipt("rejected", "mem.csv");
    assert!(receipt.left_in_place && receipt.error.as_ref().is_some_and(|error| error.contains("os error 5")));
    for number in 0..3 {
        // each listing finds the other file, too
        fixture.drop_in(format!("{number}.csv"), csv([number]));
        fixture.receipt("done", &format!("{number}.csv"));
    }
    assert_eq!(fixture.log().matches("INFO importing file=\"mem.csv\"").count(), 1, "{}", fixture.log());
    assert_eq!(fixture.log().matches("stays in input/ file=\"mem.csv\"").count(), 1);
    fs::remove_file(fixture.input("mem.csv")).expect("removed");
    fixture.wait("its receipt to go", || fixture.names("rejected").is_empty().then_some(()));
    fixture.drop_in("mem.csv", csv([3]));
    assert_eq!(fixture.counts("done", "mem.csv"), (1, 1, 0, None));
    assert_eq!(fixture.log().matches("INFO importing file=\"mem.csv\"").count(), 2);
}

#[test]
fn the_reason_says_that_refused_rows_cannot_be_written() {
    let fixture = Fixture::started();
    let key: String = Sha256::digest("a.csv")[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let in_the_way = fixture.path(format!("rejected/.{key}.part"));
    fs::create_dir(&in_the_way).expect("a directory");
    fixture.drop_in("a.csv", csv([0]) + "bad\n");
    let error = fixture.receipt("rejected", "a.csv").error.expect("an error");
    assert_eq!(error, "its refused rows cannot be written to rejected/: Is a directory (os error 21)");
    fixture.wait_for_log("cannot be imported now, stays in input/ file=\"a.csv\" reason=\"its refused rows");
    fs::remove_dir(&in_the_way).expect("removed");
    assert_eq!(fixture.counts("done", "a.csv"), (2, 1, 1, None));
    assert_eq!(fixture.text("rejected/a.csv").lines().count(), 2);
}

#[test]
fn a_file_without_permission_stays_and_is_imported_once_it_has_one() {
    let mut fixture = Fixture::new();
    // as root, the importer could read everything
    fixture.start_as_another_user();
    let name = "secret.csv";
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    let hidden = fixture.input(".secret");
    fs::write(&hidden, csv([1])).expect("a file");
    permit(&hidden, 0o000);
    fs::rename(&hidden, fixture.input(name)).expect("renamed");
    let receipt = fixture.receipt("rejected", name);
    assert!(receipt.left_in_place && receipt.error.as_ref().is_some_and(|error| error.contains("Permission denied")));
    fixture.drop_in("next.csv", csv([2]));
    assert_eq!(fixture.counts("done", "next.csv"), (1, 1, 0, None), "a file of another owner is imported too");
    permit(&fixture.input(name), 0o644);
    assert_eq!(fixture.counts("done", name), (1, 1, 0, None));
    assert_eq!(fixture.names("rejected"), [""; 0]);
}

#[test]
fn rows_that_were_read_before_their_file_was_deleted_are_imported() {
    let fixture = Fixture::started();
    let held = fs::File::create(fixture.input("gone.csv")).expect("a file");
    fs::write(fixture.input("gone.csv"), csv(0..10)).expect("written");
    fixture.wait("its rows", || (fixture.events().len() == 10).then_some(()));
    fs::remove_file(fixture.input("gone.csv")).expect("removed");
    let receipt = fixture.receipt("done", "gone.csv");
    assert_eq!(receipt.accepted, 10);
    assert_eq!(receipt.error.as_deref(), Some("the file was deleted while being read; 10 of its rows were imported"));
    drop(held);
    the_next_file_is_imported(&fixture);
}

#[test]
fn a_file_that_replaces_one_being_read_is_imported_as_well() {
    let fixture = Fixture::started();
    let held = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv(0..10)).expect("written");
    fixture.wait("its rows", || (fixture.events().len() == 10).then_some(()));
    fixture.drop_in("a.csv", csv(10..15));
    assert_eq!(
        fixture.counts("done", "a.csv"),
        (
            10,
            10,
            0,
            Some("the file was replaced by another file while being read; 10 of its rows were imported".into())
        )
    );
    assert_eq!(fixture.counts("done", "a-2.csv"), (5, 5, 0, None));
    assert_eq!(fixture.numbers(), (0..15).collect::<Vec<_>>());
    drop(held);
}

#[test]
fn a_file_that_is_truncated_while_being_read_is_read_again() {
    let fixture = Fixture::started();
    let held = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv(0..10)).expect("written");
    fixture.wait("its rows", || (fixture.events().len() == 10).then_some(()));
    fs::write(fixture.input("a.csv"), csv(20..22)).expect("written");
    fixture.wait_for_log("importing again from the beginning");
    drop(held);
    assert_eq!(fixture.counts("done", "a.csv"), (2, 2, 0, None));
    assert_eq!(fixture.numbers(), (0..10).chain(20..22).collect::<Vec<_>>());
}

#[test]
fn a_file_that_is_overwritten_by_a_longer_one_while_it_waits_is_read_again() {
    let fixture = Fixture::started();
    let held = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv(10..20)).expect("written");
    fixture.wait("its rows", || (fixture.events().len() == 10).then_some(()));
    // only the first row differs, far before the end of what was read, and a row is added
    let content = csv([30]) + &csv(11..21)[HEADER.len() + 1..];
    std::os::unix::fs::FileExt::write_all_at(&held, content.as_bytes(), 0).expect("written");
    drop(held);
    let receipt = fixture.receipt("done", "a.csv");
    assert_eq!((receipt.rows, receipt.accepted, receipt.refused), (11, 11, 0));
    assert_eq!(receipt.bytes, content.len() as u64);
    let sha256: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(receipt.sha256, Some(sha256));
    let mut numbers = fixture.numbers();
    numbers.dedup();
    assert_eq!(numbers, (10..21).chain([30]).collect::<Vec<_>>());
    fixture.wait_for_log("importing again from the beginning file=\"a.csv\" reason=\"its first ");
}

#[test]
fn a_file_that_is_overwritten_in_place_while_being_read_is_read_again() {
    let fixture = Fixture::started();
    let held = fs::File::create(fixture.input("a.csv")).expect("a file");
    fs::write(fixture.input("a.csv"), csv(0..10)).expect("written");
    fixture.wait("its rows", || (fixture.events().len() == 10).then_some(()));
    // never shorter than before
    let other = csv(10..20).replace(",incoming,", ",sale,    ");
    assert_eq!(other.len(), csv(10..20).len());
    std::os::unix::fs::FileExt::write_all_at(&held, other.as_bytes(), 0).expect("written");
    fixture.wait("the new rows", || (fixture.events().len() == 20).then_some(()));
    fixture
        .wait_for_log("importing again from the beginning file=\"a.csv\" reason=\"it was overwritten while being read");
    drop(held);
    assert_eq!(fixture.counts("done", "a.csv"), (10, 10, 0, None));
    assert_eq!(fixture.numbers(), (0..20).collect::<Vec<_>>());
}
