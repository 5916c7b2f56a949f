//! The typed row reader, which the importer uses, and the JSON schema, which is for everyone else,
//! accept and refuse the same rows; and an accepted row's record is what the wire format says.

use std::sync::LazyLock;

use events::{Column, CsvForm, EVENT_TYPES, EventType, Header, Kind, Row, RowReader, stock::StockEvent};
use jsonschema::Validator;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

fn csv(event_type: &EventType) -> &'static CsvForm {
    event_type.csv.expect("a type with a CSV form")
}

/// A value for a column: right, nearly right, or anything.
fn value(kind: &'static Kind) -> BoxedStrategy<String> {
    let right = match kind {
        Kind::Uuid => "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}".boxed(),
        Kind::OneOf(words) => select(*words).prop_map(str::to_owned).boxed(),
        // every third time at an end of the calendar, where an offset may lead beyond it
        Kind::DateTime => {
            "([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])|000[01]-01-01|9999-12-31)[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?([Zz]|[+-](0[0-9]|1[0-9]|2[0-3]):[0-5][0-9])"
                .boxed()
        }
        Kind::Integer { min, max } => (*min..=*max).prop_map(|number| number.to_string()).boxed(),
    };
    let near = match kind {
        Kind::Uuid => "[0-9a-g]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-[0-9a-f]{11,13}".boxed(),
        Kind::OneOf(words) => select(*words).prop_flat_map(edited).boxed(),
        Kind::DateTime => "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,9})?([Zz]|[+-][0-2][0-9]:?[0-6][0-9])?".boxed(),
        Kind::Integer { min, max } => prop_oneof![
            (-3_i64..4).prop_map(|number| number.to_string()),
            (i128::from(*min) - 2..=i128::from(*min) + 2).prop_map(|number| number.to_string()),
            (i128::from(*max) - 12..=i128::from(*max) + 12).prop_map(|number| number.to_string()),
            "0{0,25}[0-9]{0,20}",
            "[+-]?[0-9]{1,3}(\\.0|e1|_0)?",
        ]
        .boxed(),
    };
    let white = "[ \t]{0,2}";
    let padded = (white, right.clone(), white).prop_map(|(before, value, behind)| before + &value + &behind);
    prop_oneof![
        12 => right.clone(),
        2 => padded,
        2 => near,
        1 => right.prop_flat_map(|value| edited(&value)),
        1 => "[ -~]{0,12}",
        1 => "[^\n\r\u{0}]{0,6}",
    ]
    .boxed()
}

/// A text with a character put in, taken out or replaced.
fn edited(text: &str) -> impl Strategy<Value = String> + use<> {
    let characters: Vec<char> = text.chars().collect();
    let length = characters.len();
    (0..=length, 0..3, any::<char>().prop_filter("a row is a line", |character| !"\n\r\0".contains(*character)))
        .prop_map(move |(at, how, character)| {
            let mut edited = characters.clone();
            match how {
                0 => edited.insert(at, character),
                _ if at == length => {}
                1 => drop(edited.remove(at)),
                _ => edited[at] = character,
            }
            edited.into_iter().collect()
        })
}

fn row(event_type: &'static EventType) -> impl Strategy<Value = Vec<String>> {
    csv(event_type).columns.iter().map(|column| value(&column.kind)).collect::<Vec<_>>()
}

/// A field as CSV: in quotes where it must be.
fn field(value: &str) -> String {
    if value.contains([',', '"']) { format!("\"{}\"", value.replace('"', "\"\"")) } else { value.to_owned() }
}

fn line(values: &[String]) -> String {
    values.iter().map(|value| field(value)).collect::<Vec<_>>().join(",")
}

fn reader(header: &str) -> RowReader {
    RowReader::new(Header::read(header.as_bytes()).expect("a header"))
}

fn validator(schema: Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema")
}

/// The validator of a type's schema, with formats asserted.
fn schema(event_type: &EventType) -> &'static Validator {
    static SCHEMAS: LazyLock<Vec<(&str, Validator)>> = LazyLock::new(|| {
        EVENT_TYPES.iter().map(|event_type| (event_type.name, validator(event_type.schema()))).collect()
    });
    SCHEMAS.iter().find(|(name, _)| *name == event_type.name).map(|(_, schema)| schema).expect("a known type")
}

/// What the wire format says about a row: the columns as strings, in the type's order, trimmed.
fn record(event_type: &EventType, values: &[String]) -> Value {
    let fields = csv(event_type).columns.iter().zip(values);
    let trimmed = |value: &str| value.trim_matches(|character: char| character.is_ascii_whitespace()).to_owned();
    Value::Object(fields.map(|(column, value)| (column.name.to_owned(), trimmed(value).into())).collect::<Map<_, _>>())
}

/// The values of columns that hold a date.
fn dates<'a>(event_type: &EventType, record: &'a Value) -> impl Iterator<Item = &'a str> {
    let columns = csv(event_type).columns.iter().filter(|column| matches!(column.kind, Kind::DateTime));
    columns.filter_map(|column| record[column.name].as_str())
}

/// Whether a valid date is in the year 9999 as written, and in a later one in UTC: the one rule that
/// the schema only has as a comment.
fn is_after_year_9999(date: &str) -> bool {
    // the same date and offset four years earlier, or not a date of that year
    let Some(rest) = date.strip_prefix("9999") else { return false };
    let earlier = OffsetDateTime::parse(&format!("9995{rest}"), &Rfc3339);
    earlier.is_ok_and(|earlier| earlier.to_offset(UtcOffset::UTC).year() > 9995)
}

fn key(event_type: &EventType, record: &Value) -> String {
    let part = |position: &usize| {
        let text = record[csv(event_type).columns[*position].name].as_str().unwrap_or_default();
        match csv(event_type).columns[*position].kind {
            Kind::Integer { .. } => text.parse::<i64>().expect("a whole number").to_string(),
            _ => text.to_owned(),
        }
    };
    csv(event_type).key.iter().map(part).collect::<Vec<_>>().join("-")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn reader_and_schema_accept_and_refuse_the_same_rows(
        (event_type, values) in select(EVENT_TYPES.to_vec()).prop_flat_map(|event_type| (Just(event_type), row(event_type))),
    ) {
        let schema = schema(event_type);
        let record = record(event_type, &values);
        let mut row = Row::default();
        let read = reader(&csv(event_type).header_line()).read(line(&values).as_bytes(), &mut row);
        let valid = schema.is_valid(&record) && !dates(event_type, &record).any(is_after_year_9999);
        prop_assert_eq!(read.is_ok(), valid, "{:?} {:?}", record, read);
        match read {
            Ok(()) => {
                prop_assert_eq!(String::from_utf8_lossy(&row.payload), record.to_string());
                prop_assert_eq!(String::from_utf8_lossy(&row.key), key(event_type, &record));
                prop_assert!(StockEvent::decode(&row.payload).is_ok(), "the consumer reads what the importer writes");
            }
            Err(error) => {
                let columns: Vec<_> = error.columns.expect("columns").into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
                prop_assert_eq!(Value::Object(columns.into_iter().collect()), record);
                prop_assert!(error.error.starts_with(error.column.expect("a column")));
            }
        }
    }

    #[test]
    fn the_order_of_columns_and_further_ones_change_nothing(
        values in row(EVENT_TYPES[0]),
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let event_type = EVENT_TYPES[0];
        let names: Vec<String> = csv(event_type).columns.iter().map(|column| column.name.to_owned()).chain(["note".into(), "x".into()]).collect();
        let cells: Vec<String> = values.iter().cloned().chain(["any, \"thing\"".into(), String::new()]).collect();
        let shuffled = |cells: &[String]| line(&order.iter().map(|at| cells[*at].clone()).collect::<Vec<_>>());
        let (mut plain, mut mixed) = (Row::default(), Row::default());
        let expected = reader(&csv(event_type).header_line()).read(line(&values).as_bytes(), &mut plain);
        let found = reader(&shuffled(&names)).read(shuffled(&cells).as_bytes(), &mut mixed);
        prop_assert_eq!(&found, &expected);
        if found.is_ok() {
            prop_assert_eq!((mixed.payload, mixed.key), (plain.payload, plain.key));
        }
    }

    #[test]
    fn no_bytes_whatever_are_more_than_a_refusal(bytes in vec(any::<u8>(), 0..200)) {
        let mut row = Row::default();
        let _ = reader(&csv(EVENT_TYPES[0]).header_line()).read(&bytes, &mut row);
        let _ = Header::read(&bytes);
        let _ = StockEvent::decode(&bytes);
    }
}

#[test]
fn what_the_schema_leaves_to_its_comment_is_refused_by_the_reader() {
    let event_type = EVENT_TYPES[0];
    let row = |date| ["8947695b-7f19-44b6-96b6-7f8ed041fe57", "sale", date, "5", "12", "400"].map(str::to_owned);
    for (date, read) in [("9999-12-31T23:59:59-00:01", false), ("9999-12-31T23:58:59-00:01", true)] {
        let line = line(&row(date));
        assert_eq!(
            reader(&csv(event_type).header_line()).read(line.as_bytes(), &mut Row::default()).is_ok(),
            read,
            "{date}"
        );
        assert_eq!(is_after_year_9999(date), !read, "{date}");
        assert!(schema(event_type).is_valid(&record(event_type, &row(date))), "{date}");
    }
    insta::assert_snapshot!(event_type.schema()["properties"]["date"]["$comment"], @r#""At most 9999-12-31T23:59:59.999999Z once its offset is taken into account.""#);
}

#[test]
fn a_record_is_exactly_what_existing_consumers_rely_on() {
    let mut row = Row::default();
    reader("transaction_id,event_type,date,store_number,item_number,value")
        .read(b"8947695b-7f19-44b6-96b6-7f8ed041fe57, incoming ,2019-04-14T03:47:13Z,5,012,400", &mut row)
        .expect("a row");
    assert_eq!(
        String::from_utf8_lossy(&row.payload),
        r#"{"transaction_id":"8947695b-7f19-44b6-96b6-7f8ed041fe57","event_type":"incoming","date":"2019-04-14T03:47:13Z","store_number":"5","item_number":"012","value":"400"}"#
    );
    assert_eq!(String::from_utf8_lossy(&row.key), "5-12", "however a number is written, a card has one key");
}

#[test]
fn the_schema_names_and_explains_every_column() {
    insta::assert_snapshot!(EVENT_TYPES[0].schema()["properties"]["value"], @r#"{"type":"string","pattern":"^0*(2147483647|[1-9][0-9]{0,8}|[1-1][0-9]{9}|2[0-0][0-9]{8}|21[0-3][0-9]{7}|214[0-6][0-9]{6}|2147[0-3][0-9]{5}|21474[0-7][0-9]{4}|214748[0-2][0-9]{3}|2147483[0-5][0-9]{2}|21474836[0-3][0-9]{1}|214748364[0-6][0-9]{0})$","description":"How many pieces."}"#);
    let schema = EVENT_TYPES[0].schema();
    assert_eq!(
        schema["required"],
        json!(["transaction_id", "event_type", "date", "store_number", "item_number", "value"])
    );
}

#[test]
fn a_value_that_is_not_required_may_be_absent_or_empty_and_is_then_not_in_the_record() {
    static COLUMNS: [Column; 3] = [
        Column { name: "id", kind: Kind::Integer { min: 0, max: 9 }, required: true, description: "" },
        Column { name: "change", kind: Kind::Integer { min: -9, max: 9 }, required: false, description: "" },
        Column { name: "at", kind: Kind::DateTime, required: false, description: "" },
    ];
    static CSV: CsvForm = CsvForm { columns: &COLUMNS, key: &[0] };
    static KEYED: CsvForm = CsvForm { columns: &COLUMNS, key: &[0, 1] };
    static TYPE: EventType = EventType { name: "t", topic: ("T", "t"), payload: || CSV.schema(), csv: Some(&CSV) };
    let read = |positions: &[Option<usize>], line: &str| {
        let (positions, width) = (positions.to_vec(), positions.iter().flatten().count());
        let header = Header { event_type: &TYPE, csv: &CSV, positions, width, ends_in_error: false };
        let mut row = Row::default();
        let read = RowReader::new(header).read(line.as_bytes(), &mut row);
        read.map(|()| String::from_utf8(row.payload).expect("UTF-8")).map_err(|error| error.error)
    };
    let key = |line: &str| {
        let positions = vec![Some(0), Some(1), None];
        let mut row = Row::default();
        let header = Header { event_type: &TYPE, csv: &KEYED, positions, width: 2, ends_in_error: false };
        RowReader::new(header).read(line.as_bytes(), &mut row).expect("accepted");
        String::from_utf8(row.key).expect("UTF-8")
    };
    assert_eq!([key("007,-003"), key("7,-3"), key("0,3")], ["7--3", "7--3", "0-3"]);
    let all = [Some(0), Some(1), Some(2)];
    let full = r#"{"id":"7","change":"-3","at":"2019-04-14T03:47:13Z"}"#;
    assert_eq!(read(&all, "7,-3,2019-04-14T03:47:13Z").as_deref(), Ok(full));
    assert_eq!(read(&all, "7, ,2019-04-14T03:47:13Z").as_deref(), Ok(r#"{"id":"7","at":"2019-04-14T03:47:13Z"}"#));
    assert_eq!(read(&[Some(1), None, Some(0)], ",7").as_deref(), Ok(r#"{"id":"7"}"#));
    assert_eq!(read(&all, ",-10,x").expect_err("refused").split("; ").count(), 3);
    let schema = validator(TYPE.schema());
    for (record, is_valid) in
        [(full, true), (r#"{"id":"7"}"#, true), (r#"{"change":"1"}"#, false), (r#"{"id":"7","change":"10"}"#, false)]
    {
        let record: Value = serde_json::from_str(record).expect("JSON");
        assert_eq!(schema.is_valid(&record), is_valid, "{record}");
    }
}
