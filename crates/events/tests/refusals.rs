//! What comes back: rows refused with everything that is wrong with them, headers, dead letters.

use events::{
    Header, HeaderError, Refusal, RefusalClass, Row, RowReader,
    dead_letter::{self, RecordLocation, RowLocation},
};

const HEADER: &str = "transaction_id,event_type,date,store_number,item_number,value";
const GOOD: &str = "8947695b-7f19-44b6-96b6-7f8ed041fe57,incoming,2019-04-14T03:47:13Z,5,12,400";

fn read(header: &str, line: &[u8]) -> Result<String, String> {
    let mut row = Row::default();
    let read = RowReader::new(Header::read(header.as_bytes()).expect("a header")).read(line, &mut row);
    read.map(|()| String::from_utf8(row.key).expect("UTF-8")).map_err(|error| error.error)
}

#[test]
fn everything_that_is_wrong_with_a_row_is_named_column_by_column() {
    insta::assert_snapshot!(read(HEADER, b"x,stolen,2019-04-14T03:47:13,-1,,0").expect_err("refused").replace("; ", "\n"), @r#"
transaction_id: "x" is not a UUID (like 8947695b-7f19-44b6-96b6-7f8ed041fe57)
event_type: "stolen" is not known (one of: incoming, sale)
date: "2019-04-14T03:47:13" has no offset from UTC (like 2019-04-14T03:47:13Z or 2019-04-14T05:47:13+02:00)
store_number: "-1" is not a whole number from 0 to 9223372036854775807
item_number: is empty
value: "0" is not a whole number from 1 to 2147483647
"#);
    insta::assert_snapshot!(read(HEADER, b"\xff,sale,2019-02-29T00:00:00Z,99999999999999999999,1,1.5").expect_err("refused").replace("; ", "\n"), @r#"
transaction_id: "�" is not valid UTF-8
date: "2019-02-29T00:00:00Z" is not a date and time with an offset (like 2019-04-14T03:47:13Z)
store_number: "99999999999999999999" is not a whole number from 0 to 9223372036854775807
value: "1.5" is not a whole number from 1 to 2147483647
"#);
}

#[test]
fn every_year_of_four_digits_is_a_date_as_long_as_utc_agrees() {
    let at = |date: &str| read(HEADER, GOOD.replace("2019-04-14T03:47:13Z", date).as_bytes());
    for date in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999+23:59"] {
        assert_eq!(at(date), Ok("5-12".into()), "{date}");
    }
    insta::assert_snapshot!(at("9999-12-31T23:59:59-00:01").expect_err("refused"), @r#"date: "9999-12-31T23:59:59-00:01" is later than the year 9999 in UTC (the latest is 9999-12-31T23:59:59Z)"#);
    insta::assert_snapshot!(at("0000-12-31T23:59:59-00:01").expect_err("refused"), @r#"date: "0000-12-31T23:59:59-00:01" is not a date and time with an offset (like 2019-04-14T03:47:13Z)"#);
}

#[test]
fn a_line_that_falls_apart_is_refused_whole() {
    insta::assert_snapshot!(read(HEADER, b"a,b").expect_err("refused"), @"the line has 2 fields, the header has 6");
    insta::assert_snapshot!(read(HEADER, format!("{GOOD},extra").as_bytes()).expect_err("refused"), @"the line has 7 fields, the header has 6");
    insta::assert_snapshot!(read(HEADER, b"a,\"b,c,d,e,f").expect_err("refused"), @"the quote that opens at byte 3 of the line is never closed");
    insta::assert_snapshot!(read(HEADER, b"a,\"b\"c,c,d,e,f").expect_err("refused"), @"there is text after the closing quote, at byte 6 of the line");
    insta::assert_snapshot!(read(HEADER, b"a,b\0,c,d,e,f").expect_err("refused"), @"the line holds a NUL byte at its byte 4");
}

#[test]
fn quotes_white_space_and_empty_fields_at_the_end_are_fine() {
    for line in [
        format!("{GOOD},,"),
        GOOD.replace("incoming", " \"incoming\" "),
        GOOD.replace(',', "\t, "),
        GOOD.split(',').map(|field| format!("\"{field}\"")).collect::<Vec<_>>().join(","),
    ] {
        assert_eq!(read(HEADER, line.as_bytes()), Ok("5-12".into()), "{line}");
    }
}

#[test]
fn a_corrected_row_of_a_rejected_file_may_have_its_reason_or_not() {
    let header = format!("{HEADER},error");
    for line in [GOOD.to_owned(), format!("{GOOD},"), format!("{GOOD},\"was, once, wrong\"")] {
        assert_eq!(read(&header, line.as_bytes()), Ok("5-12".into()), "{line}");
    }
    assert!(read(&header, b"8947695b-7f19-44b6-96b6-7f8ed041fe57,incoming").is_err());
}

#[test]
fn headers_are_recognised_in_any_order_and_case_with_a_byte_order_mark() {
    let header =
        Header::read(b"\xef\xbb\xbfVALUE, date ,\"Item_Number\",note,store_number,event_type,transaction_id,error")
            .expect("a header");
    assert_eq!(
        (header.event_type.name, header.positions, header.width, header.ends_in_error),
        ("stock", [6, 5, 1, 4, 2, 0].map(Some).to_vec(), 8, true)
    );
}

#[test]
fn what_is_no_header_is_told_with_what_it_should_be() {
    insta::assert_snapshot!(Header::read(GOOD.as_bytes()).expect_err("no header"), @r#"the first line is not a header of a known kind of event: "8947695b-7f19-44b6-96b6-7f8ed041fe57,incoming,2019-04-14T03:47:13Z,5,12,400"; expected transaction_id,event_type,date,store_number,item_number,value"#);
    insta::assert_snapshot!(Header::read(HEADER.replace(',', ";").as_bytes()).expect_err("no header"), @r#"the first line is not a header of a known kind of event: "transaction_id;event_type;date;store_number;item_number;value" (the columns must be separated by commas); expected transaction_id,event_type,date,store_number,item_number,value"#);
    let twice = Header::read(format!("{HEADER},Date").as_bytes()).expect_err("no header");
    assert_eq!(twice, HeaderError::Twice("date"));
}

#[test]
fn a_row_comes_back_with_its_columns_its_place_and_its_reason() {
    let mut row = Row::default();
    let line = GOOD.replace("400", "0");
    let error = RowReader::new(Header::read(HEADER.as_bytes()).expect("a header"))
        .read(line.as_bytes(), &mut row)
        .expect_err("refused");
    let place = RowLocation { file: "a.csv", line: 3, byte: 140, column: error.column };
    let letter = dead_letter::of_row("errors", place, "events", line.as_bytes(), &error);
    insta::assert_snapshot!(String::from_utf8_lossy(&letter.payload), @r#"{"transaction_id":"8947695b-7f19-44b6-96b6-7f8ed041fe57","event_type":"incoming","date":"2019-04-14T03:47:13Z","store_number":"5","item_number":"12","value":"0","error":"value: \"0\" is not a whole number from 1 to 2147483647","file":"a.csv","line":3,"byte":140,"column":"value"}"#);
    insta::assert_debug_snapshot!(letter.all_headers().collect::<Vec<_>>(), @r#"
[
    (
        "__connect.errors.topic",
        "events",
    ),
    (
        "__connect.errors.connector.name",
        "importer",
    ),
    (
        "__connect.errors.exception.class.name",
        "InvalidRow",
    ),
    (
        "__connect.errors.exception.message",
        "value: \"0\" is not a whole number from 1 to 2147483647",
    ),
    (
        "ce_id",
        "c4d70564-f39a-5161-8892-9ab2dee2236e",
    ),
]
"#);
    assert_eq!(
        letter,
        dead_letter::of_row("errors", place, "events", line.as_bytes(), &error),
        "a repeat has the same id"
    );
}

#[test]
fn a_line_without_columns_comes_back_as_it_is() {
    let mut row = Row::default();
    let line = b"\xff\"\0";
    let error =
        RowReader::new(Header::read(HEADER.as_bytes()).expect("a header")).read(line, &mut row).expect_err("refused");
    let place = RowLocation { file: "a.csv", line: 2, byte: 62, column: None };
    let letter = dead_letter::of_row("errors", place, "events", line, &error);
    insta::assert_snapshot!(String::from_utf8_lossy(&letter.payload), @r#"{"raw":"�\"\u0000","raw_base64":"/yIA","error":"the line holds a NUL byte at its byte 3","file":"a.csv","line":2,"byte":62}"#);
}

#[test]
fn a_record_comes_back_with_all_of_its_fields_and_where_it_stood() {
    let place = RecordLocation { service: "stock", topic: "events", partition: 2, offset: 41 };
    let refusal = Refusal { error: "4-3 does not exist!".into(), class: RefusalClass::UnknownCard };
    let letter = dead_letter::of_record("errors", place, Some(b"4-3"), br#"{"store_number":"4","more":[1]}"#, &refusal);
    insta::assert_snapshot!(String::from_utf8_lossy(&letter.payload), @r#"{"store_number":"4","more":[1],"error":"4-3 does not exist!"}"#);
    insta::assert_debug_snapshot!((&letter.key, letter.all_headers().collect::<Vec<_>>()), @r#"
(
    Some(
        [
            52,
            45,
            51,
        ],
    ),
    [
        (
            "__connect.errors.topic",
            "events",
        ),
        (
            "__connect.errors.partition",
            "2",
        ),
        (
            "__connect.errors.offset",
            "41",
        ),
        (
            "__connect.errors.connector.name",
            "stock",
        ),
        (
            "__connect.errors.exception.class.name",
            "UnknownCard",
        ),
        (
            "__connect.errors.exception.message",
            "4-3 does not exist!",
        ),
        (
            "ce_id",
            "0993c8b7-8001-5549-a61c-93611cb9f8e5",
        ),
    ],
)
"#);
    let letter = dead_letter::of_record("errors", place, None, b"not JSON", &refusal);
    insta::assert_snapshot!(String::from_utf8_lossy(&letter.payload), @r#"{"raw":"not JSON","error":"4-3 does not exist!"}"#);
}

#[test]
fn a_line_of_absurdly_many_fields_is_refused_without_being_taken_apart() {
    let error = format!("the line has more than {} fields", events::csv::row::MAX_FIELDS);
    let commas = ",".repeat(60_000);
    assert_eq!(read(HEADER, commas.as_bytes()), Err(error.clone()));
    assert_eq!(read(HEADER, format!("\"{commas}\"{commas}").as_bytes()), Err(error));
    let empty = ",".repeat(events::csv::row::MAX_FIELDS - 6);
    let row = "8947695b-7f19-44b6-96b6-7f8ed041fe57,incoming,2019-04-14T03:47:13Z,5,12,400";
    assert!(read(HEADER, format!("{row}{empty}").as_bytes()).is_ok(), "as many as may be");
}
