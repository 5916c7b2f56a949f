//! `onhand status` on a real Kafka and Postgres, with services that run, fail and stop.

mod system;

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use system::{System, output, until};

const HEADER: &str = "transaction_id,event_type,date,store_number,item_number,value\n";
/// More than ever comes in.
const WAITING: &str = "00000000-0000-0000-0000-000000000002,sale,2019-04-14T03:50:00Z,4,3,100\n";

fn status(system: &System) -> (Option<i32>, Value) {
    let (code, printed, said) = system.run(&["status", "--json"]);
    (code, serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}{said}")))
}

/// Puts a file where the importer finds it.
fn drop_in(system: &System, name: &str, rows: &str) -> PathBuf {
    let (hidden, path) = (system.importer().join("input/.hidden"), system.importer().join("input").join(name));
    fs::write(&hidden, format!("{HEADER}{rows}")).expect("written");
    fs::rename(hidden, &path).expect("renamed");
    path
}

#[test]
fn status_of_a_running_system_names_what_waits_and_what_is_unhealthy_since_when() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "2"), ("STOCK_RETRY_MS", "3600000")]);
    let up = system.spawn(&["up"]);
    until("it is healthy", || (status(&system).0 == Some(0)).then_some(()));
    let rows = format!("00000000-0000-0000-0000-000000000001,incoming,2019-04-14T03:47:13Z,4,3,1\n{WAITING}");
    drop_in(&system, "rows.csv", &rows);
    let (code, now) = until("the sale waits", || {
        let (code, now) = status(&system);
        (now["waiting_sales"]["count"] == 1 && now["lag"] == 0).then_some((code, now))
    });
    assert_eq!(code, Some(0), "{now:#}");
    let services: Vec<_> = now["services"].as_array().expect("services").iter().collect();
    for (service, name) in services.iter().zip(["importer", "stock"]) {
        assert_eq!(
            (&service["service"], &service["running"], &service["healthy"]),
            (&json!(name), &json!(true), &json!(true)),
            "{now:#}"
        );
    }
    assert_eq!(now["waiting_sales"]["oldest"]["timestamp"], "2019-04-14T03:50:00Z");
    assert_eq!(now["partitions"].as_array().map(Vec::len), Some(2));
    assert_eq!((&now["outbox"]["count"], &now["unknown"]), (&json!(0), &json!([])));
    let (code, text, _) = system.run(&["status", "--partitions"]);
    let expected = [
        "importer       healthy, running since 20",
        "stock          healthy, running since 20",
        &format!("lag            stock in {}: 0 records behind", system.topic),
        "               partition 1: 0, next offset ",
        "waiting sales  1; the oldest: 100 of 4-3 at 2019-04-14T03:50:00Z, tried again at 20",
        "outbox         empty",
        "files          0 in progress, 0 not begun",
    ];
    let missing: Vec<_> = expected.iter().filter(|start| !text.lines().any(|line| line.starts_with(**start))).collect();
    assert!(code == Some(0) && missing.is_empty(), "{missing:?} of\n{text}");

    // where the next file would go there is something else
    fs::rename(system.importer().join("done"), system.importer().join("kept")).expect("renamed");
    fs::write(system.importer().join("done"), "in the way").expect("a file");
    drop_in(&system, "more.csv", WAITING);
    let now = until("the importer is unhealthy", || {
        let (code, now) = status(&system);
        (code == Some(1)).then_some(now)
    });
    let problem = &now["services"][0]["problems"][0];
    assert_eq!((&now["healthy"], &problem["part"]), (&json!(false), &json!("done")), "{now:#}");
    assert_eq!(now["services"][1]["healthy"], true, "{now:#}");
    assert_eq!(now["files"]["in_progress"][0]["file"], "more.csv", "{now:#}");
    let since = problem["since"].as_str().expect("a time");
    let (_, text, _) = system.run(&["status"]);
    assert!(text.contains("done: 1 imported files cannot be moved: \"more.csv\": "), "{text}");
    assert!(text.contains(&format!("(since {since})")), "{text}");
    up.stop();

    let (code, now) = status(&system);
    assert_eq!(code, Some(1), "{now:#}");
    assert_eq!((&now["services"][0]["running"], &now["services"][1]["running"]), (&json!(false), &json!(false)));
}

#[test]
fn status_says_what_it_could_not_find_out_and_ends_with_2() {
    let system = System::new(&[("KAFKA_TOPIC_PARTITIONS", "1")]);
    let (importer, stock) = (system.start("importer"), system.start("stock"));
    let now = until("both run", || {
        let (code, now) = status(&system);
        (code == Some(2) && now["waiting_sales"]["count"] == 0).then_some(now)
    });
    let unknown = ["health of importer: METRICS_ADDRESS is not set", "health of stock: METRICS_ADDRESS is not set"];
    assert_eq!((&now["healthy"], &now["unknown"]), (&json!(true), &json!(unknown)));

    let mut away = system.onhand(&["status"]);
    away.envs([("KAFKA_BROKER_URL", "127.0.0.1:9"), ("POSTGRES_HOSTNAME", "127.0.0.1:9")]);
    let (code, text, said) = output(away.args(["--health", "127.0.0.1:9"]));
    for (what, why) in [
        ("health of importer", "no answer from 127.0.0.1:9"),
        ("lag", "no Kafka answers at 127.0.0.1:9"),
        ("lag, waiting sales and outbox", "Postgres at "),
    ] {
        assert!(text.contains(&format!("could not check {what}: {why}")), "{what}: {text}{said}");
    }
    assert_eq!(code, Some(2), "{text}");
    importer.stop();
    stock.stop();
}
