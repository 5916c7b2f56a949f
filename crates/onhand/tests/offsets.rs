//! `onhand offsets` on a real Kafka and Postgres.

mod system;

use std::fs;

use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use runtime::{health::Health, kafka};
use system::{System, output, until};
use tokio_util::sync::CancellationToken;

/// Imports rows of one card, with ids from this number on.
fn import(system: &System, from: u32, rows: u32) {
    let row = |number| format!("00000000-0000-0000-0000-{number:012},incoming,2019-04-14T03:47:13Z,4,3,1\n");
    let rows: String = (from..from + rows).map(row).collect();
    let text = format!("transaction_id,event_type,date,store_number,item_number,value\n{rows}");
    fs::write(system.dir.path().join("rows.csv"), text).expect("written");
    let (code, _, said) = system.run(&["import", "rows.csv"]);
    assert_eq!(code, Some(0), "{said}");
}

fn amounts(system: &System) -> Vec<(i64,)> {
    system.rows("SELECT amount FROM items")
}

/// Lines without the space between columns.
fn lines(printed: &str) -> Vec<String> {
    printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The topic is deleted and created again.
fn create_again(system: &System) {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let admin: AdminClient<DefaultClientContext> = kafka::client(&system.kafka, "test").create().expect("a client");
    let before = kafka::topic_identity(admin.inner(), &system.topic).expect("an identity");
    tokio.block_on(async {
        let deleted = admin.delete_topics(&[&system.topic], &AdminOptions::new()).await.expect("asked");
        deleted[0].as_ref().expect("deleted");
    });
    until("it is created again", || {
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        tokio
            .block_on(async { kafka::ensure_topics(&system.kafka, &[&system.topic], &health, &shutdown).await })
            .ok()?;
        let now = kafka::topic_identity(admin.inner(), &system.topic).ok()?;
        (now != before).then_some(())
    });
}

#[test]
fn offsets_shows_how_far_a_service_is_behind_and_whether_the_topic_is_still_the_one_it_read() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "1")]);
    let (code, _, said) = system.run(&["offsets"]);
    assert!(code == Some(2) && said.contains("has a service run on this database?"), "{said}");
    import(&system, 0, 3);
    let stock = system.start("stock");
    system.until_read();
    let topic = &system.topic;
    let (code, printed, said) = system.run(&["offsets"]);
    let head = "service topic partition next offset end lag";
    let expected = [head.to_owned(), format!("stock {topic} 0 3 3 0"), "0 records behind".into()];
    assert_eq!((code, lines(&printed)), (Some(0), expected.into()), "{said}");
    stock.stop();

    import(&system, 3, 2);
    let (code, printed, said) = system.run(&["offsets"]);
    let expected = [head.to_owned(), format!("stock {topic} 0 3 5 2"), "2 records behind".into()];
    assert_eq!((code, lines(&printed)), (Some(0), expected.into()), "{said}");

    let (code, printed, said) = system.run(&["offsets", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let partition = serde_json::json!({
        "service": "stock", "topic": topic, "partition": 0, "next_offset": 3, "end": 5, "lag": 2,
        "problem": null, "unknown": null
    });
    assert_eq!((code, &json), (Some(0), &serde_json::json!({ "lag": 2, "partitions": [partition] })), "{said}");
    let mut away = system.onhand(&["offsets"]);
    let (code, printed, _) = output(away.env("KAFKA_BROKER_URL", "127.0.0.1:9"));
    assert!(code == Some(2) && printed.ends_with("lag unknown\n"), "{printed}");

    create_again(&system);
    import(&system, 5, 4);
    let (code, printed, said) = system.run(&["offsets"]);
    let other =
        format!("stock {topic} 0 3 4 ? not the topic that was read: it was created again, or is another cluster's");
    let expected = [head.to_owned(), other, "lag unknown".into()];
    assert_eq!((code, lines(&printed)), (Some(1), expected.into()), "{said}");

    // what the service says too, and the way out
    let mut stock = system.onhand(&["run", "stock"]);
    let stopped = stock.output().expect("it runs");
    let said = String::from_utf8_lossy(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("onhand offsets --forget stock --topic {topic}")), "{said}");
    let (code, printed, said) = system.run(&["offsets", "--forget", "stock", "--topic", topic, "--yes"]);
    let expected = format!("forgot 1 partitions of {topic}; stock will start at its first record\n");
    assert_eq!((code, printed), (Some(0), expected), "{said}");
    let stock = system.start("stock");
    system.until_read();
    assert_eq!(amounts(&system), [(7,)], "three before, four after");
    // what was applied from the topic before is on the new one, at other offsets
    import(&system, 0, 3);
    system.until_read();
    assert_eq!(amounts(&system), [(7,)], "each once");
    stock.stop();
    let (code, printed, said) = system.run(&["verify"]);
    assert_eq!(code, Some(0), "{printed}{said}");
}

#[test]
fn forget_refuses_while_the_service_runs_and_without_yes_where_nobody_can_be_asked() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "2")]);
    import(&system, 0, 5);
    let stock = system.start("stock");
    system.until_read();
    let topic = &system.topic;
    let forget = |options: &[&str]| system.run(&[&["offsets", "--forget", "stock", "--topic"], options].concat());
    let refused = |said: &str| (Some(2), String::new(), format!("onhand: {said}\n"));
    assert_eq!(forget(&[topic, "--yes"]), refused("stock is running on this database; stop it first"));
    stock.stop();

    let confirm = format!("say --yes to confirm: stock will read {topic} again from its first record");
    assert_eq!(forget(&[topic]), refused(&confirm));
    let unknown = "stock has no offsets in topic unheard-of; `onhand offsets` lists what there is";
    assert_eq!(forget(&["unheard-of", "--yes"]), refused(unknown));
    assert!(system.is_read(), "nothing was forgotten");

    assert_eq!(forget(&[topic, "--yes"]).0, Some(0));
    assert!(!system.is_read());
    let stock = system.start("stock");
    system.until_read();
    assert_eq!(amounts(&system), [(5,)], "ids that were applied before change nothing");
    stock.stop();
}
