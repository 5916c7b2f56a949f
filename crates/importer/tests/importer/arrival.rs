//! How files arrive: copied, moved, written slowly, with and without the watcher.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

use crate::fixture::{Fixture, HEADER, csv, gzip, row};

#[test]
fn a_row_becomes_a_record_and_an_invalid_row_a_refusal() {
    let fixture = Fixture::started();
    fixture.drop_in("a.csv", csv([4]) + "\nbad\n" + &row(5).replace(",6", ",0") + "\n");
    let receipt = fixture.receipt("done", "a.csv");
    assert_eq!(
        (receipt.file.as_str(), receipt.event_type.as_deref(), receipt.rows, receipt.accepted, receipt.refused),
        ("a.csv", Some("stock"), 3, 1, 2)
    );
    assert_eq!(
        (receipt.bytes, receipt.rejected.as_deref(), receipt.error),
        (fixture.text("done/a.csv").len() as u64, Some("a.csv"), None)
    );
    let [event] = &fixture.events()[..] else { panic!("one event") };
    assert_eq!(event.key, "4-4");
    assert_eq!(
        event.payload,
        r#"{"transaction_id":"00000000-0000-4000-8000-000000000004","event_type":"incoming","date":"2019-04-14T03:47:13Z","store_number":"4","item_number":"4","value":"5"}"#
    );
    let errors = fixture.errors();
    let payloads: Vec<_> = errors.iter().map(|record| record.payload.as_str()).collect();
    assert_eq!(
        payloads,
        [
            r#"{"raw":"bad","error":"the line has 1 fields, the header has 6","file":"a.csv","line":4,"byte":136}"#,
            r#"{"transaction_id":"00000000-0000-4000-8000-000000000005","event_type":"incoming","date":"2019-04-14T03:47:13Z","store_number":"0","item_number":"5","value":"0","error":"value: \"0\" is not a whole number from 1 to 2147483647","file":"a.csv","line":5,"byte":140,"column":"value"}"#,
        ]
    );
    assert_eq!(errors[0].headers["__connect.errors.topic"], fixture.events);
    assert_eq!(fixture.names("input"), [""; 0]);
    assert_eq!(fixture.in_progress(), [""; 0]);
    assert!(fixture.text("done/a.csv.receipt.json").ends_with("}\n"));
    let size = fixture.text("done/a.csv").len();
    fixture.wait_for_log(&format!(
        "finished file=\"a.csv\" event_type=\"stock\" bytes={size} rows=3 accepted=1 refused=2 rejected=\"a.csv\" \
         elapsed_ms="
    ));
}

#[test]
fn log_lines_have_fields_for_programs() {
    let fixture = Fixture::new().set("LOG_FORMAT", "json").start_now();
    fixture.drop_in("a\n.csv", csv([4]) + "bad\n");
    let fields = fixture.wait("its line", || {
        let lines = fixture.log();
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["fields"]["message"] == "finished").map(|line| line["fields"].clone())
    });
    assert!(fields["elapsed_ms"].is_u64(), "{fields}");
    let mut fields = fields;
    fields["elapsed_ms"] = 0.into();
    let bytes = fixture.receipt("done", "a\n.csv").bytes;
    let expected = serde_json::json!({
        "message": "finished", "file": "a\n.csv", "event_type": "stock", "bytes": bytes, "rows": 2, "accepted": 1,
        "refused": 1, "rejected": "a\n.csv", "elapsed_ms": 0
    });
    assert_eq!(fields, expected);
}

/// The shortest of several attempts: on a busy machine anything may be delayed.
fn quickest(mut attempt: impl FnMut(usize) -> Duration) -> Duration {
    (0..10).map(&mut attempt).min().expect("an attempt")
}

#[test]
fn a_file_is_finished_as_soon_as_it_has_been_quiet() {
    let fixture = Fixture::started();
    fixture.wait_for_log("importing files dropped into input/");
    for kind in ["copied.csv", "moved.csv", "packed.csv.gz"] {
        let time = quickest(|attempt| {
            let name = format!("{attempt}-{kind}");
            let content = if kind.ends_with("gz") { gzip(csv(0..10)) } else { csv(0..10).into_bytes() };
            match kind {
                "moved.csv" => fixture.drop_in(&name, content),
                _ => fs::write(fixture.input(&name), content).expect("a file"),
            }
            let complete = Instant::now();
            assert_eq!(fixture.counts("done", &name), (10, 10, 0, None), "{name}");
            complete.elapsed()
        });
        // IMPORT_QUIET_MS is 250
        assert!((200..400).contains(&time.as_millis()), "{kind}: {time:?}");
    }
}

#[test]
fn a_row_is_on_its_topic_within_milliseconds() {
    let fixture = Fixture::started();
    fixture.drop_in("first.csv", csv([0]));
    fixture.receipt("done", "first.csv");
    let consumer = fixture.follow_events();
    let mut times: Vec<_> = (1..=40)
        .map(|number| {
            fs::write(fixture.input(".coming"), csv([number])).expect("a file");
            let begun = Instant::now();
            fs::rename(fixture.input(".coming"), fixture.input(format!("{number}.csv"))).expect("its name");
            consumer.poll(Duration::from_secs(10)).expect("a record in time").expect("a record");
            let time = begun.elapsed();
            fixture.receipt("done", &format!("{number}.csv"));
            time
        })
        .collect();
    times.sort();
    println!("fastest {:?}, median {:?}", times[0], times[times.len() / 2]);
    // on a busy machine anything may be delayed: the fastest attempts show what the importer needs
    assert!(times[3] < Duration::from_millis(5), "{times:?}");
}

#[test]
fn a_file_that_is_written_slowly_is_read_as_it_grows_and_finished_once() {
    let fixture = Fixture::started();
    let mut file = File::create(fixture.input("slow.csv")).expect("a file");
    writeln!(file, "{HEADER}").expect("written");
    for number in 0..5 {
        let line = row(number) + "\n";
        let (first, second) = line.split_at(50);
        file.write_all(first.as_bytes()).expect("written");
        file.flush().expect("written");
        if number == 3 {
            // longer than the quiet period, but the file is still open for writing
            let until = Instant::now() + Duration::from_millis(700);
            fixture.wait("some time", || (Instant::now() > until).then_some(()));
        }
        file.write_all(second.as_bytes()).expect("written");
        fixture.wait("the row", || (fixture.events().len() == number + 1).then_some(()));
        assert_eq!(fixture.names("done"), [""; 0]);
    }
    file.write_all(row(5).as_bytes()).expect("written");
    drop(file);
    assert_eq!(fixture.counts("done", "slow.csv"), (6, 6, 0, None));
    assert_eq!(fixture.numbers(), (0..6).collect::<Vec<_>>());
}

#[test]
fn without_the_watcher_the_scan_alone_finds_everything() {
    let mut fixture = Fixture::new().set("IMPORT_WATCH", "false");
    fixture.drop_in("before.csv", csv(0..3));
    fixture.start();
    assert_eq!(fixture.counts("done", "before.csv"), (3, 3, 0, None));
    let time = quickest(|attempt| {
        let (name, first) = (format!("grows{attempt}.csv"), 3 + 4 * attempt);
        let mut file = File::create(fixture.input(&name)).expect("a file");
        write!(file, "{}", csv(first..first + 2)).expect("written");
        fixture.wait("the rows", || (fixture.events().len() == first + 2).then_some(()));
        write!(file, "{}\n{}\n", row(first + 2), row(first + 3)).expect("written");
        drop(file);
        let complete = Instant::now();
        assert_eq!(fixture.counts("done", &name), (4, 4, 0, None));
        complete.elapsed()
    });
    // IMPORT_QUIET_MS, and the time to notice that the file was written to
    assert!(time < Duration::from_millis(700), "{time:?}");
    assert_eq!(fixture.numbers(), (0..43).collect::<Vec<_>>());
}

#[test]
fn hidden_and_temporary_files_are_ignored_until_they_are_renamed() {
    let fixture = Fixture::started();
    let names = [".x.csv", "x.csv.part", "x.csv.tmp", "x.csv~", "x.txt"];
    for (number, name) in names.iter().enumerate() {
        fs::write(fixture.input(name), csv([number])).expect("a file");
    }
    fixture.wait_for_log("is neither .csv nor .csv.gz");
    fixture.drop_in("other.csv", csv([9]));
    fixture.receipt("done", "other.csv");
    assert_eq!(fixture.numbers(), [9]);
    for (number, name) in names.iter().enumerate() {
        fs::rename(fixture.input(name), fixture.input(format!("renamed{number}.csv"))).expect("renamed");
        fixture.receipt("done", &format!("renamed{number}.csv"));
    }
    assert_eq!(fixture.numbers(), [0, 1, 2, 3, 4, 9]);
}

#[test]
fn columns_in_any_order_a_byte_order_mark_and_any_line_breaks_are_accepted() {
    let fixture = Fixture::started();
    fixture.drop_in(
        "a.csv",
        "\u{feff}value,note,item_number,store_number,date,event_type,transaction_id\r\n\r\n12,\"so, so\",3,4,2019-04-14T03:47:13+02:00,sale,8947695B-7f19-44b6-96b6-7f8ed041fe57",
    );
    assert_eq!(fixture.counts("done", "a.csv"), (1, 1, 0, None));
    assert_eq!(
        fixture.events()[0].payload,
        r#"{"transaction_id":"8947695B-7f19-44b6-96b6-7f8ed041fe57","event_type":"sale","date":"2019-04-14T03:47:13+02:00","store_number":"4","item_number":"3","value":"12"}"#
    );
}

#[test]
fn unusual_file_names_are_imported() {
    let fixture = Fixture::started();
    let long = format!("{}.csv", "ü".repeat(125));
    let names = [
        &b"with space.csv"[..],
        b"with \"quotes\" and 'more'.csv",
        b"new\nline.csv",
        b"no\xff\xfeutf8.csv",
        long.as_bytes(),
    ];
    for (number, name) in names.iter().enumerate() {
        fixture.drop_in(std::ffi::OsStr::from_bytes(name), csv([number]) + "bad\n");
    }
    fixture.wait("receipts", || (fixture.names("done").len() == 2 * names.len()).then_some(()));
    assert_eq!(fixture.numbers(), (0..names.len()).collect::<Vec<_>>());
    assert_eq!(fixture.names("rejected").len(), names.len());
    let files: Vec<_> =
        fixture.errors().iter().map(|record| record.json()["file"].as_str().map(str::to_owned)).collect();
    for name in names {
        let shown = String::from_utf8_lossy(name).into_owned();
        assert!(fixture.path("done").join(std::ffi::OsStr::from_bytes(name)).exists(), "{shown:?}");
        assert!(files.contains(&Some(shown)));
    }
}

#[test]
fn a_name_that_is_taken_gets_a_number() {
    let fixture = Fixture::started();
    for number in 0..3 {
        fixture.drop_in("daily.csv", csv([number]));
        let name = ["daily.csv", "daily-2.csv", "daily-3.csv"][number];
        assert_eq!(fixture.counts("done", name), (1, 1, 0, None));
        assert_eq!(fixture.text(&format!("done/{name}")), csv([number]));
    }
}

#[test]
fn a_corrected_file_of_refused_rows_imports_only_those_rows() {
    let fixture = Fixture::started();
    fixture.drop_in(
        "a.csv",
        csv([0]) + &row(1).replace("incoming", "incomming") + "\n" + &csv([2])[HEADER.len() + 1..] + "x,\"y\n",
    );
    assert_eq!(fixture.counts("done", "a.csv"), (4, 2, 2, None));
    let rejected = fixture.text("rejected/a.csv");
    assert_eq!(
        rejected,
        format!(
            "{HEADER},error\n{},\"event_type: \"\"incomming\"\" is not known (one of: incoming, sale)\"\nx,\"y,\"the quote that opens at byte 3 of the line is never closed\"\n",
            row(1).replace("incoming", "incomming")
        )
    );
    fixture.drop_in("a.csv", rejected.replace("incomming", "incoming"));
    assert_eq!(fixture.counts("done", "a-2.csv"), (2, 1, 1, None));
    assert_eq!(fixture.numbers(), [0, 1, 2]);
    assert_eq!(
        fixture.text("rejected/a-2.csv"),
        format!("{HEADER},error\nx,\"y,\"there is text after the closing quote, at byte 7 of the line\"\n")
    );
}

#[test]
fn rows_of_a_card_keep_their_order() {
    let fixture = Fixture::started();
    fixture.drop_in("a.csv", csv(0..20_000));
    assert_eq!(fixture.counts("done", "a.csv"), (20_000, 20_000, 0, None));
    let mut last = std::collections::HashMap::new();
    for event in fixture.events() {
        let before = last.insert(event.key.clone(), (event.partition, event.number()));
        assert!(before.is_none_or(|(partition, number)| partition == event.partition && number < event.number()));
    }
    assert_eq!(last.len(), 35);
}
