//! The whole pipeline with processes that are killed on the way: files, Kafka, Postgres, and then
//! `onhand verify`, beside a slow and obvious fold of the test's own.

mod system;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Write,
};

use events::generate::{ExpectedOutcome, Generator, Shape};
use serde_json::Value;
use system::{System, until};

const SHAPE: Shape = Shape {
    stores: 20,
    items: 100,
    sales: 0.5,
    early: 0.02,
    hopeless: 0.002,
    duplicates: 0.01,
    conflicts: 0.005,
    bad: 0.005,
};

/// A row that the importer accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    id: String,
    event: String,
    card: (i64, i64),
    value: i64,
}

/// What was generated, in its order.
#[derive(Default)]
struct Generated {
    rows: Vec<Row>,
    fates: BTreeMap<ExpectedOutcome, u64>,
    hopeless: BTreeSet<String>,
}

impl Generated {
    /// Another file's lines, each with its line break; the first is the header.
    fn file(&mut self, seed: u64, rows: usize) -> Vec<String> {
        let mut generator = Generator::new(seed, SHAPE).expect("a shape");
        let mut lines = vec![Generator::header_line()];
        for _ in 0..rows {
            let mut bytes = Vec::new();
            let fate = generator.write_row(&mut bytes);
            let line = String::from_utf8_lossy(&bytes).into_owned();
            *self.fates.entry(fate).or_default() += 1;
            if fate != ExpectedOutcome::Bad {
                let columns: Vec<_> = line.trim_end().split(',').collect();
                let number = |column: usize| columns[column].parse::<i64>().expect("a number");
                let (id, event) = (columns[0].to_owned(), columns[1].to_owned());
                if fate == ExpectedOutcome::Hopeless {
                    self.hopeless.insert(id.clone());
                }
                self.rows.push(Row { id, event, card: (number(3), number(4)), value: number(5) });
            }
            lines.push(line);
        }
        lines
    }

    fn count(&self, fate: ExpectedOutcome) -> u64 {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    /// Rows that are the first one of their id again, word for word.
    fn repeats(&self) -> u64 {
        let distinct = self.distinct();
        let same = self.rows.iter().filter(|row| *distinct[row.id.as_str()] == **row).count();
        (same - distinct.len()) as u64
    }

    /// The first row of each id: what comes later with it is a duplicate or a conflict.
    fn distinct(&self) -> HashMap<&str, &Row> {
        let mut first = HashMap::new();
        for row in &self.rows {
            first.entry(row.id.as_str()).or_insert(row);
        }
        first
    }
}

/// Puts a whole file where the importer finds it, as people are told to: written aside, then moved.
fn drop_in(system: &System, name: &str, lines: &[String]) {
    let aside = system.dir.path().join(name);
    fs::write(&aside, lines.concat()).expect("written");
    fs::rename(aside, system.importer().join("input").join(name)).expect("moved");
}

fn is_done(system: &System, name: &str) -> bool {
    system.importer().join("done").join(format!("{name}.receipt.json")).exists()
}

/// Rows of a file that an importer has recorded as accepted and as refused; none before it has
/// recorded any.
fn progress(system: &System, name: &str) -> Option<(u64, u64)> {
    let records = system.importer().join("progress").read_dir().ok()?.flatten();
    let texts = records.filter_map(|record| fs::read(record.path()).ok());
    let progress =
        texts.filter_map(|text| serde_json::from_slice::<Value>(&text).ok()).find(|it| it["file"] == name)?;
    Some((progress["accepted"].as_u64()?, progress["refused"].as_u64()?))
}

/// A refusal of stock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Refusal {
    /// A repeat has the same.
    ce_id: String,
    class: String,
    transaction_id: String,
}

/// What stock refused, repeats once.
fn refusals(system: &System) -> BTreeSet<Refusal> {
    let errors = &system.kafka.errors_topic;
    let (code, lines, said) = system.run(&["tail", errors, "--from", "start", "--no-follow", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_stock = records.filter(|record| record["headers"]["__connect.errors.connector.name"] == "stock");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let one = |record: Value| Refusal {
        ce_id: text(&record["headers"]["ce_id"]),
        class: text(&record["headers"]["__connect.errors.exception.class.name"]),
        transaction_id: text(&record["value"]["transaction_id"]),
    };
    of_stock.map(one).collect()
}

/// Ids of the sales that were given up.
fn given_up(refusals: &BTreeSet<Refusal>) -> BTreeSet<&str> {
    let given_up = refusals.iter().filter(|refusal| refusal.class != "ConflictingTransaction");
    given_up.map(|refusal| refusal.transaction_id.as_str()).collect()
}

/// The number before these words in what verify prints.
fn figure(printed: &str, words: &str) -> u64 {
    let line = printed.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words:?} in {printed}"));
    let number = line.split_whitespace().next().expect("a number").replace(',', "");
    number.parse().expect("a number")
}

#[test]
fn the_whole_pipeline_survives_kills_and_ends_with_exactly_what_the_files_say() {
    let system = System::new(&[
        ("KAFKA_TOPIC_PARTITIONS", "4"),
        ("STOCK_BATCH_SIZE", "500"),
        // the clock gives up nothing on its own: what waits in the end had its chance
        ("STOCK_RETRY_MS", "600000"),
    ]);
    let mut generated = Generated::default();
    let files: Vec<_> =
        (1..).zip([15_000, 60_000, 15_000, 10_000]).map(|(seed, rows)| generated.file(seed, rows)).collect();
    fs::create_dir_all(system.importer().join("input")).expect("a directory");

    drop_in(&system, "a.csv", &files[0]);
    let importer = system.start("importer");
    let stocks = [system.start("stock"), system.start("stock")];
    until("both stock processes have partitions", || {
        stocks.iter().all(|stock| stock.said().contains("reading a partition")).then_some(())
    });
    until("the first file is done", || is_done(&system, "a.csv").then_some(()));

    // killed in the middle of a file, which is not over as long as somebody has it open
    let before = system.records(&system.topic) as u64;
    let mut growing = File::create(system.importer().join("input").join("b.csv")).expect("a file");
    growing.write_all(files[1][..40_000].concat().as_bytes()).expect("written");
    until("some of it is on the topic", || (system.records(&system.topic) as u64 > before + 5_000).then_some(()));
    importer.kill();
    let importer = system.start("importer");
    // and once more when all rows so far are acknowledged: now none must come again
    let there = until("all of it is on the topic", || {
        progress(&system, "b.csv").filter(|(accepted, refused)| accepted + refused == 39_999)
    });
    importer.kill();
    let again = system.records(&system.topic) as u64 - before - there.0;
    assert!(!is_done(&system, "b.csv"));
    growing.write_all(files[1][40_000..].concat().as_bytes()).expect("written");
    drop(growing);
    let importer = system.start("importer");

    drop_in(&system, "c.csv", &files[2]);
    until("a third is applied", || (system.count("transactions") > 100_000 / 3).then_some(()));
    let [killed, other] = stocks;
    killed.kill();
    drop_in(&system, "d.csv", &files[3]);
    let started_again = system.start("stock");

    until("all files are done", || {
        ["a", "b", "c", "d"].iter().all(|f| is_done(&system, &format!("{f}.csv"))).then_some(())
    });
    system.until_read();
    let (rows, accepted, refused) = receipts(&system);
    let bad = generated.count(ExpectedOutcome::Bad);
    assert_eq!((rows, accepted, refused), (100_000, 100_000 - bad, bad));

    assert_eq!(given_up(&refusals(&system)), BTreeSet::new(), "nothing is given up while it may still fit");
    let waiting = waiting(&system);
    assert!(generated.hopeless.is_subset(&waiting), "{} wait", waiting.len());
    system.tamper("UPDATE waiting_sales SET tries = 30, next_try_at = now()");
    until("no sale waits", || (system.count("waiting_sales") == 0 && system.is_read()).then_some(()));
    let refusals = refusals(&system);
    assert!(given_up(&refusals).into_iter().eq(&waiting), "just those that waited are given up");
    check_journal(&system, &generated, &waiting);

    let (code, printed, said) = system.run(&["verify"]);
    assert_eq!(code, Some(0), "{printed}{said}");
    let journal = system.count("transactions") as u64;
    let records = figure(&printed, "records of topic");
    assert_eq!(records, system.records(&system.topic) as u64);
    // rows in flight at the first kill came twice, and no others
    assert_eq!(records, accepted + again, "{printed}");
    assert_eq!(figure(&printed, "in the journal"), journal);
    assert_eq!(figure(&printed, "waiting (waiting_sales)"), 0);
    assert_eq!(figure(&printed, "refused, each with its reason"), refusals.len() as u64);
    let duplicates = figure(&printed, "duplicates");
    assert_eq!(duplicates, records - journal - refusals.len() as u64);
    let repeats = generated.repeats();
    assert!((repeats..=repeats + again).contains(&duplicates), "{repeats} and at most {again} more: {printed}");
    assert_eq!(figure(&printed, "refused rows of files"), bad);
    assert_eq!(figure(&printed, "receipts of files"), 4);
    // the same with as little memory as it takes, so that it sorts in files
    let little = ["verify", "--memory", "1"];
    assert_eq!(system.run(&little), (Some(0), printed, String::new()));
    let (code, _, said) = system.run(&[&little[..], &["-T", "/no/such/directory"]].concat());
    let expected = "temporary files in /no/such/directory (--temporary-directory names another one): No such file";
    assert!(code == Some(2) && said.contains(expected), "{said}");
    for process in [importer, other, started_again] {
        process.stop();
    }
}

/// Ids of the sales that wait, none of which fits.
fn waiting(system: &System) -> BTreeSet<String> {
    let sql = "SELECT transaction_id::text, waiting.amount, items.amount FROM waiting_sales AS waiting
               LEFT JOIN items ON store_id = store_number AND item_id = item_number";
    let sales: Vec<(String, i64, Option<i64>)> = system.rows(sql);
    let fits = sales.iter().find(|(_, wanted, there)| there.is_some_and(|there| there >= *wanted));
    assert_eq!(fits, None);
    sales.into_iter().map(|(id, ..)| id).collect()
}

/// Rows, accepted and refused, over all receipts.
fn receipts(system: &System) -> (u64, u64, u64) {
    let mut sums = (0, 0, 0);
    for entry in fs::read_dir(system.importer().join("done")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().ends_with(".receipt.json") {
            let receipt: Value = serde_json::from_slice(&fs::read(path).expect("a receipt")).expect("JSON");
            let number = |name: &str| receipt[name].as_u64().expect("a number");
            sums = (sums.0 + number("rows"), sums.1 + number("accepted"), sums.2 + number("refused"));
        }
    }
    sums
}

/// The journal holds each distinct event once, but for sales that were given up; and the items are
/// what it sums up to.
fn check_journal(system: &System, generated: &Generated, given_up: &BTreeSet<String>) {
    let journal: Vec<(String, String, i64, i64, i64)> =
        system.rows("SELECT transaction_id::text, event, store_number, item_number, amount FROM transactions");
    let distinct = generated.distinct();
    let (mut sums, mut applied) = (BTreeMap::new(), BTreeSet::new());
    for (id, event, store, item, value) in &journal {
        let expected = distinct.get(id.as_str()).unwrap_or_else(|| panic!("{id} was never generated"));
        let row = Row { id: id.clone(), event: event.clone(), card: (*store, *item), value: *value };
        assert_eq!(row, **expected);
        assert!(applied.insert(id.as_str()), "{id} is there twice");
        *sums.entry(row.card).or_insert(0) += if event == "incoming" { expected.value } else { -value };
    }
    for (id, row) in &distinct {
        let is_given_up = given_up.contains(*id);
        assert!(!is_given_up || row.event == "sale", "{row:?} was given up");
        assert!(applied.contains(id) != is_given_up, "{row:?} is nowhere, or in two places");
    }
    let items: Vec<(i64, i64, i64)> = system.rows("SELECT store_id, item_id, amount FROM items");
    let items: BTreeMap<_, _> = items.into_iter().map(|(store, item, amount)| ((store, item), amount)).collect();
    assert!(items.values().all(|amount| *amount >= 0));
    assert_eq!(items, sums);
}

const HEADER: &str = "transaction_id,event_type,date,store_number,item_number,value";

/// A row of store 4; the id is made from the number.
fn row(number: u32, event: &str, item: u32, value: u32) -> String {
    format!("00000000-0000-0000-0000-{number:012},{event},2019-04-14T03:47:13Z,4,{item},{value}\n")
}

#[test]
fn verify_fails_and_names_what_differs_however_the_tables_are_tampered_with() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "2"), ("STOCK_RETRY_MS", "3600000")]);
    let rows = [
        row(1, "incoming", 3, 400),
        row(2, "sale", 3, 20),
        row(1, "incoming", 3, 400),
        row(1, "incoming", 3, 401),
        row(3, "sale", 9, 5),
        row(4, "gift", 3, 5),
        row(5, "incoming", 7, 6),
        row(6, "incoming", 3, 1),
    ];
    fs::write(system.dir.path().join("tiny.csv"), format!("{HEADER}\n{}", rows.concat())).expect("written");
    assert_eq!(system.run(&["import", "tiny.csv"]).0, Some(1), "one row is refused");
    let stock = system.start("stock");
    system.until_read();
    stock.stop();
    let (code, printed, said) = system.run(&["verify"]);
    assert_eq!(code, Some(0), "{printed}{said}");
    let figures =
        ["records of topic", "in the journal", "duplicate", "waiting (", "refused, each", "cards", "refused row of"];
    assert_eq!(figures.map(|words| figure(&printed, words)), [7, 4, 1, 1, 1, 2, 1], "{printed}");

    let id = |number: u32| format!("00000000-0000-0000-0000-{number:012}");
    let spoilt = [
        ("UPDATE items SET amount = amount + 1 WHERE item_id = 3", "items: 4-3 is 382, the events say 381".to_owned()),
        ("DELETE FROM items WHERE item_id = 7", "items: 4-7 is missing, the events say 6".into()),
        (
            "DELETE FROM transactions WHERE event = 'sale'",
            format!("sale of {} on 4-3 is nowhere", id(2)),
        ),
        (
            "UPDATE transactions SET amount = 19 WHERE event = 'sale'",
            format!("transactions: {} has other content than its event", id(2)),
        ),
        (
            "INSERT INTO transactions SELECT '00000000-0000-0000-0000-000000000099', event, timestamp, 4, 7, 1 FROM transactions LIMIT 1",
            format!("transactions: {} is there, but no event on the topic accounts for it", id(99)),
        ),
        ("DELETE FROM waiting_sales", format!("sale of {} on 4-9 is nowhere", id(3))),
        ("UPDATE waiting_sales SET amount = 4", format!("waiting_sales: {} has other content than its event", id(3))),
        (
            "WITH gone AS (DELETE FROM waiting_sales RETURNING *)
             INSERT INTO transactions SELECT transaction_id, 'sale', timestamp, store_number, item_number, amount FROM gone",
            format!("transactions: {} on 4-9 is there, but must wait", id(3)),
        ),
        (
            "UPDATE transactions SET store_number = 5 WHERE event = 'sale'",
            format!("transactions: {} has other content than its event", id(2)),
        ),
        (
            "UPDATE transactions SET event = 'gift' WHERE event = 'sale'",
            format!("transactions: {} has other content than its event", id(2)),
        ),
        (
            "UPDATE transactions SET amount = 1::bigint << 62 WHERE event = 'sale'",
            format!("transactions: {} has other content than its event", id(2)),
        ),
        (
            "UPDATE transactions SET partition = 1, record_offset = 1000 WHERE event = 'sale'",
            format!("transactions: {} is not the event of record 1:1000, which it says it came from", id(2)),
        ),
        // the first record of the partition that has most is the first one of all
        (
            "UPDATE transactions SET record_offset = 0,
                 partition = (SELECT partition FROM consumer_offsets ORDER BY next_offset DESC LIMIT 1)
             WHERE event = 'sale'",
            format!("transactions: {} is not the event of record ", id(2)),
        ),
        (
            "UPDATE transactions SET record_offset = 0, recorded_at = '2000-01-01Z',
                 partition = (SELECT partition FROM consumer_offsets ORDER BY next_offset DESC LIMIT 1)
             WHERE amount = 400",
            ":0 was recorded at 2000-01-01T00:00:00Z, the topic says 2".into(),
        ),
        ("INSERT INTO stores VALUES (5)", "stores: 5 is there, but has no items".into()),
        ("DELETE FROM stores", "stores: 4 is missing, it has items".into()),
        (
            "UPDATE waiting_sales SET record_offset = record_offset + 1000",
            format!("is not there, but the sale {} waits as the one that came there", id(3)),
        ),
        (
            "UPDATE waiting_sales SET record_offset = 0, partition = (SELECT min(partition) FROM consumer_offsets WHERE next_offset > 2)",
            format!("record 0:0 is not the sale {}, which waits as the one that came there", id(3)),
        ),
        (
            "INSERT INTO outbox (service, topic, payload, headers) VALUES ('stock', 'errors', '{}', '[[\"ce_id\", \"made-up\"]]')",
            "errors: made-up has no reason".into(),
        ),
        (
            "UPDATE consumer_offsets SET next_offset = next_offset - 1 WHERE next_offset > 0",
            format!("transactions: {} is there, but no event on the topic accounts for it", id(6)),
        ),
    ];
    let spoilt = spoilt.map(|(sql, expected)| (sql.to_owned(), expected));
    // refusals that nobody decided, of the first record of all, and of one that is not there
    let refused = |class: &str, offset: i64| {
        format!(
            "INSERT INTO outbox (service, topic, payload, headers)
             SELECT 'stock', 'errors', '{{\"error\": \"made up\"}}', jsonb_build_array(
                 jsonb_build_array('ce_id', 'made-up'),
                 jsonb_build_array('__connect.errors.connector.name', 'stock'),
                 jsonb_build_array('__connect.errors.topic', topic),
                 jsonb_build_array('__connect.errors.partition', partition::text),
                 jsonb_build_array('__connect.errors.offset', '{offset}'),
                 jsonb_build_array('__connect.errors.exception.class.name', '{class}'))
             FROM consumer_offsets ORDER BY next_offset DESC LIMIT 1"
        )
    };
    let made_up = [
        (
            refused("ConflictingTransaction", 0),
            "0 was refused as a conflict, but no other event has the id ".to_owned(),
        ),
        (refused("StockOverflow", 0), "0 was refused as an overflow, which it is not".into()),
        (refused("InsufficientStock", 0), "0 was given up, though it fitted when it came".into()),
        (refused("InvalidEvent", 0), "0 was refused as InvalidEvent, but is an event".into()),
        (refused("Mood", 0), "0 as Mood, which no rule of stock is".into()),
        (refused("InvalidEvent", -5), ":-5 was refused, but is not on the topic".into()),
    ];
    for (sql, expected) in spoilt.into_iter().chain(made_up) {
        let copy = system.copy();
        copy.tamper(&sql);
        let (code, printed, said) = copy.run(&["verify"]);
        assert_eq!(code, Some(1), "{sql}: {printed}{said}");
        assert!(printed.contains(&expected), "{sql}: not {expected:?} in {printed}{said}");
    }

    // what cannot be compared is neither the same nor different
    let copy = system.copy();
    copy.tamper("UPDATE consumer_offsets SET topic_identity = 'another/' || topic_identity");
    let (code, printed, said) = copy.run(&["verify"]);
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{said}");
    assert!(said.contains("is not the topic that was read"), "{said}");

    // for programs
    let copy = system.copy();
    copy.tamper("UPDATE items SET amount = amount + 1");
    let (code, printed, said) = copy.run(&["verify", "--json"]);
    let report: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((code, said.as_str()), (Some(1), ""));
    let figures = ["records", "journal", "duplicates", "waiting", "refused", "cards", "refused_rows"];
    let figures = figures.map(|name| report[name].as_u64().expect("a number"));
    assert_eq!((figures, report["holds"].as_bool()), ([7, 4, 1, 1, 1, 2, 1], Some(false)), "{printed}");
    let example = |message: &str, card: &str| serde_json::json!({ "message": message, "card": card });
    let differences = serde_json::json!([
        { "kind": "amount", "count": 2, "examples": [
            example("items: 4-3 is 382, the events say 381", "4-3"),
            example("items: 4-7 is 7, the events say 6", "4-7"),
        ] },
        { "kind": "journal_sum", "count": 2, "examples": [
            example("items: 4-3 is 382, its journal sums up to 381", "4-3"),
            example("items: 4-7 is 7, its journal sums up to 6", "4-7"),
        ] },
    ]);
    assert_eq!((&report["differences"], report["difference_count"].as_u64()), (&differences, Some(4)));

    let receipt = system.importer().join("done").join("x.csv.receipt.json");
    fs::create_dir_all(system.importer().join("done")).expect("a directory");
    fs::write(&receipt, r#"{"rows": 3, "accepted": 1, "refused": 1}"#).expect("written");
    let (code, printed, _) = system.run(&["verify"]);
    let expected = format!("{}: rows are not accepted + refused", receipt.display());
    assert!(code == Some(1) && printed.contains(&expected), "{printed}");
    fs::remove_file(receipt).expect("removed");
    assert_eq!(system.run(&["verify"]).0, Some(0), "the system itself was not tampered with");
}
