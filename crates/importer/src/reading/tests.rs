use runtime::{Environment, KafkaSettings};

use super::*;

/// With a broker that never answers: nothing is acknowledged but chunks without a record.
fn desk() -> Desk {
    let mut env = Environment::of([("KAFKA_BROKER_URL".into(), "127.0.0.1:1".into())]);
    Desk::new(Sender::new(&KafkaSettings::read(&mut env)).expect("a producer"))
}

fn read_to_its_end(reading: &mut Reading, desk: &mut Desk) {
    loop {
        match reading.step(desk, true).expect("a step") {
            Step::More => {}
            step => return assert_eq!(step, Step::End { rest: false }),
        }
        while let Some(chunk) = desk.done() {
            reading.landed(chunk.mark);
        }
    }
}

#[test]
fn a_header_behind_many_blank_lines_is_no_row_when_its_rows_are_sent_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.csv");
    let header = "transaction_id,event_type,date,store_number,item_number,value";
    let row = "00000000-0000-4000-8000-000000000000,incoming,2019-04-14T03:47:13Z,1,1,1";
    let content = "\n".repeat(BUFFER + 1) + header + "\n" + row + "\n";
    for gzip in [false, true] {
        let mut bytes = content.clone().into_bytes();
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, &bytes).expect("packed");
            bytes = encoder.finish().expect("packed");
        }
        std::fs::write(&path, bytes).expect("a file");
        let file = || File::open(&path).expect("the file");
        let mut desk = desk();
        let mut reading = Reading::new(1, "a.csv".into(), gzip, None);
        reading.open(file());
        assert_eq!(reading.step(&mut desk, true).expect("the blank lines"), Step::More);
        let blank = desk.done().expect("they are done").mark;
        reading.landed(blank);
        assert_eq!(reading.step(&mut desk, true).expect("the header"), Step::More);
        assert_eq!(reading.event_type(), Some("stock"));
        let progress = reading.progress("", String::new());

        reading.rewind(false);
        reading.open(file());
        read_to_its_end(&mut reading, &mut desk);
        assert_eq!((reading.here.accepted, reading.here.refused), (1, 0), "sent again, gzip: {gzip}");

        let mut reading = Reading::new(2, "a.csv".into(), gzip, None);
        reading.go_on_from(progress);
        reading.open(file());
        read_to_its_end(&mut reading, &mut desk);
        assert_eq!((reading.here.accepted, reading.here.refused), (1, 0), "after a restart, gzip: {gzip}");
        assert_eq!(reading.here.line as usize, BUFFER + 3);
    }
}
