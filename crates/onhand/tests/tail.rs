//! `onhand tail` on a real Kafka: by partition, offset, time and key.

mod system;

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use system::System;

/// Imports a row each of these cards (of item 3), with ids from this number on.
fn import(system: &System, from: u32, stores: &[u32]) {
    let row = |(at, store): (usize, &u32)| {
        format!("00000000-0000-0000-0000-{:012},incoming,2019-04-14T03:47:13Z,{store},3,1\n", from as usize + at)
    };
    let rows: String = stores.iter().enumerate().map(row).collect();
    let text = format!("transaction_id,event_type,date,store_number,item_number,value\n{rows}");
    fs::write(system.dir.path().join("rows.csv"), text).expect("written");
    let (code, _, said) = system.run(&["import", "rows.csv"]);
    assert_eq!(code, Some(0), "{said}");
}

/// The records that tail shows until there are no more.
fn tail(system: &System, options: &[&str]) -> Vec<Value> {
    let arguments = [&["tail", &system.topic, "--json", "--no-follow"], options].concat();
    let (code, printed, said) = system.run(&arguments);
    assert_eq!(code, Some(0), "{said}");
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn ids(records: &[Value]) -> BTreeSet<u64> {
    let id = |record: &Value| record["value"]["transaction_id"].as_str()?.rsplit('-').next()?.parse().ok();
    records.iter().map(|record| id(record).expect("an id")).collect()
}

fn error_of(system: &System, options: &[&str]) -> String {
    let (code, printed, said) = system.run(&[&["tail", &system.topic, "--no-follow"], options].concat());
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{said}");
    said
}

#[test]
fn tail_shows_a_part_of_a_topic_by_partition_offset_time_and_key() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "4")]);
    let stores: Vec<u32> = (1..=20).chain([7, 7]).collect();
    import(&system, 0, &stores);
    let all = tail(&system, &["--from", "beginning"]);
    assert_eq!(ids(&all), (0..22).collect());
    assert_eq!(tail(&system, &[]), Vec::<Value>::new(), "from now on there is nothing");

    // a key, and only its partition is read
    let of_7 = tail(&system, &["--from", "beginning", "--key", "7-3"]);
    assert_eq!(ids(&of_7), BTreeSet::from([6, 20, 21]));
    let partition = of_7[0]["partition"].to_string();
    assert_eq!(of_7, tail(&system, &["--from", "beginning", "--key", "7-3", "--all-partitions"]));
    assert_eq!(tail(&system, &["--from", "beginning", "--key", "7"]), Vec::<Value>::new(), "keys are exact");

    // a partition, from an offset on
    let of_partition = tail(&system, &["--from", "beginning", "--partition", &partition]);
    let expected: Vec<_> = all.iter().filter(|record| record["partition"] == of_7[0]["partition"]).cloned().collect();
    assert_eq!(of_partition, expected);
    let last = of_7[2]["offset"].to_string();
    let one = tail(&system, &["--partition", &partition, "--offset", &last, "--limit", "1"]);
    assert_eq!(one, of_7[2..]);
    let one = tail(&system, &["--key", "7-3", "--from", &last]);
    assert_eq!(one, of_7[2..]);

    // by time
    import(&system, 100, &[1, 2, 3]);
    let late: Vec<_> =
        tail(&system, &["--from", "beginning"]).into_iter().filter(|record| !all.contains(record)).collect();
    let since = late.iter().map(|record| record["timestamp"].as_str().expect("a time")).min().expect("records");
    assert_eq!(ids(&tail(&system, &["--since", since])), BTreeSet::from([100, 101, 102]));
    assert_eq!(ids(&tail(&system, &["--since", "1h"])).len(), 25);
    assert_eq!(tail(&system, &["--since", "9999-01-01T00:00:00Z"]), Vec::<Value>::new());

    let end = of_partition.len() + 100;
    let no_offset = error_of(&system, &["--partition", &partition, "--offset", &end.to_string()]);
    assert!(
        no_offset.contains(&format!("partition {partition} has no offset {end}: it starts at 0, and ")),
        "{no_offset}"
    );
    let no_partition = error_of(&system, &["--partition", "4"]);
    assert!(no_partition.contains("has no partition 4; it has 4, counted from 0"), "{no_partition}");
    let no_choice = error_of(&system, &["--offset", "4"]);
    assert!(no_choice.contains("an offset belongs to one partition"), "{no_choice}");
    let no_time = error_of(&system, &["--since", "yesterday"]);
    assert!(no_time.contains("expected a time (2026-05-04T06:30:00Z), or how long ago"), "{no_time}");
}
