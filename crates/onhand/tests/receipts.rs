//! `onhand verify` holds the receipts of files against the topics.

mod system;

use std::{fs, path::Path};

use system::{System, until};

const FILE: &str = "\
transaction_id,event_type,date,store_number,item_number,value
00000000-0000-0000-0000-000000000001,incoming,2019-04-14T03:47:13Z,4,3,400
00000000-0000-0000-0000-000000000002,gift,2019-04-14T03:47:13Z,4,3,1
00000000-0000-0000-0000-000000000003,sale,2019-04-14T03:47:13Z,4,3,none
";

/// Puts a whole file where the importer finds it, and waits for its receipt.
fn drop_in(system: &System, name: &str, text: &str, receipt: &str) {
    let aside = system.dir.path().join(name);
    fs::write(&aside, text).expect("written");
    fs::rename(aside, system.importer().join("input").join(name)).expect("moved");
    let receipt = system.importer().join("done").join(receipt);
    until("it is done", || receipt.exists().then_some(()));
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("a receipt");
    assert!(text.contains(from), "no {from} in {text}");
    fs::write(path, text.replace(from, to)).expect("written");
}

#[test]
fn verify_holds_receipts_against_the_topics() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "1")]);
    fs::write(system.dir.path().join("by-hand.csv"), FILE).expect("written");
    assert_eq!(system.run(&["import", "by-hand.csv"]).0, Some(1), "two rows are refused");
    let stock = system.start("stock");
    system.until_read();
    let holds = |lines: &[&str]| {
        let (code, printed, said) = system.run(&["verify"]);
        let there = |line: &&str| printed.lines().any(|printed| printed.trim_start().starts_with(*line));
        assert!(code == Some(0) && lines.iter().all(there), "{printed}{said}");
    };
    let directory = system.importer().display().to_string();
    holds(&[&format!("no receipts: {directory} does not exist; files are not checked")]);

    fs::create_dir_all(system.importer().join("input")).expect("a directory");
    let importer = system.start("importer");
    drop_in(&system, "a.csv", FILE, "a.csv.receipt.json");
    // the same refusals once more
    drop_in(&system, "a.csv", FILE, "a-2.csv.receipt.json");
    importer.stop();
    system.until_read();
    stock.stop();
    let receipts = &format!("2 receipts of files in {directory}");
    holds(&["4 refused rows of files", receipts, "2 refused rows have no receipt", "everything holds"]);

    let receipt = system.importer().join("done").join("a-2.csv.receipt.json");
    let whole = fs::read_to_string(&receipt).expect("a receipt");
    let spoilt = [
        (("\"refused\": 2", "\"refused\": 3"), ("\"rows\": 3", "\"rows\": 4"), "a receipt of a.csv says that 3 rows"),
        (("\"accepted\": 1", "\"accepted\": 3"), ("\"rows\": 3", "\"rows\": 5"), "that 4 rows were accepted"),
        (("\"refused\": 2", "\"refused\": 2"), ("\"rows\": 3", "\"rows\": 4"), "rows are not accepted + refused"),
    ];
    for (one, other, expected) in spoilt {
        replace(&receipt, one.0, one.1);
        replace(&receipt, other.0, other.1);
        let (code, printed, said) = system.run(&["verify"]);
        assert!(code == Some(1) && printed.contains(expected), "not {expected} in {printed}{said}");
        fs::write(&receipt, &whole).expect("written");
    }
}
