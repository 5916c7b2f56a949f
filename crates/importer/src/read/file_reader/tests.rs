use runtime::{Environment, KafkaSettings};

use super::*;

/// On a broker that never answers: only chunks without a record are acknowledged.
fn sink() -> Sink {
    let mut env = Environment::of([("KAFKA_BROKER_URL".into(), "127.0.0.1:1".into())]);
    Sink::new(Producer::new(&KafkaSettings::read(&mut env)).expect("a producer"))
}

fn read_to_its_end(reader: &mut FileReader, sink: &mut Sink) {
    loop {
        match reader.step(sink, true).expect("a step") {
            Step::More => {}
            step => return assert_eq!(step, Step::End { rest: false }),
        }
        while let Some(chunk) = sink.next_done() {
            reader.acknowledge(chunk.position);
        }
    }
}

#[test]
fn a_header_after_many_blank_lines_is_not_a_row_when_its_rows_are_sent_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.csv");
    let header = "transaction_id,event_type,date,store_number,item_number,value";
    let row = "00000000-0000-4000-8000-000000000000,incoming,2019-04-14T03:47:13Z,1,1,1";
    let content = "\n".repeat(BUFFER_BYTES + 1) + header + "\n" + row + "\n";
    for gzip in [false, true] {
        let mut bytes = content.clone().into_bytes();
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, &bytes).expect("packed");
            bytes = encoder.finish().expect("packed");
        }
        std::fs::write(&path, bytes).expect("a file");
        let file = || File::open(&path).expect("the file");
        let mut sink = sink();
        let mut reader = FileReader::new(1, "a.csv".into(), gzip, None);
        reader.open(file());
        assert_eq!(reader.step(&mut sink, true).expect("the blank lines"), Step::More);
        let blank = sink.next_done().expect("they are complete").position;
        reader.acknowledge(blank);
        assert_eq!(reader.step(&mut sink, true).expect("the header"), Step::More);
        assert_eq!(reader.event_type(), Some("stock"));
        let checkpoint = reader.checkpoint();

        reader.rewind(false);
        reader.open(file());
        read_to_its_end(&mut reader, &mut sink);
        assert_eq!((reader.position.accepted, reader.position.refused), (1, 0), "sent again, gzip: {gzip}");

        let mut reader = FileReader::new(2, "a.csv".into(), gzip, None);
        reader.resume_from(checkpoint);
        reader.open(file());
        read_to_its_end(&mut reader, &mut sink);
        assert_eq!((reader.position.accepted, reader.position.refused), (1, 0), "after a restart, gzip: {gzip}");
        assert_eq!(reader.position.line as usize, BUFFER_BYTES + 3);
    }
}

#[test]
fn a_refused_batch_of_several_chunks_marks_no_row_as_too_large() {
    let chunk = |last_line, byte, is_single| Chunk {
        file: 1,
        last_line,
        is_single,
        position: Position { byte, ..Position::default() },
    };
    let too_large = RDKafkaErrorCode::MessageSizeTooLarge;
    let mut reader = FileReader::new(1, "a.csv".into(), false, None);
    // slots are reused, so a later chunk may come first
    for (last_line, byte) in [(300, 400), (100, 200)] {
        reader.narrow_down_refusal(&chunk(last_line, byte, false), too_large).expect("sent again");
    }
    assert_eq!((reader.one_by_one, reader.oversized.len()), (OneByOne::Until(400), 0));
    reader.narrow_down_refusal(&chunk(300, 350, true), too_large).expect("refused as a row");
    assert_eq!(reader.oversized, [(300, 1)].into());
    let error = reader.narrow_down_refusal(&chunk(300, 350, true), RDKafkaErrorCode::InvalidRecord).expect_err("known");
    assert!(error.starts_with("Kafka refuses the record of line "), "{error}");
}
