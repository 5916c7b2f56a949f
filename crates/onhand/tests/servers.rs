//! Commands on a real Kafka and Postgres.

use std::{
    fs,
    process::{Command, Output},
};

/// On the tests' servers, in a directory of its own, with topics of its own.
fn onhand(dir: &tempfile::TempDir, topics: &str) -> Command {
    let shared = sandbox::shared();
    let mut command = Command::new(env!("CARGO_BIN_EXE_onhand"));
    command.current_dir(dir.path()).envs(shared.environment("postgres"));
    command.env("KAFKA_EVENTS_TOPIC", format!("{topics}-events")).env("KAFKA_ERRORS_TOPIC", format!("{topics}-errors"));
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn import_says_what_became_of_the_rows_and_tail_shows_them() {
    let dir = tempfile::tempdir().unwrap();
    let topics = sandbox::shared().fresh_name("import");
    let header = "transaction_id,event_type,date,store_number,item_number,value";
    let good = "8947695b-7f19-44b6-96b6-7f8ed041fe57,incoming,2019-04-14T03:47:13Z,5,12,400";
    fs::write(dir.path().join("good.csv"), format!("{header}\n{good}\n")).unwrap();
    fs::write(dir.path().join("bad.csv"), format!("{header}\n{good}0000000000\n")).unwrap();

    let (code, lines, errors) = run(onhand(&dir, &topics).args(["import", "good.csv"]));
    assert_eq!((code, lines.as_str()), (Some(0), "good.csv: 1 row, 1 accepted, 0 refused\n"), "{errors}");
    let (code, lines, errors) = run(onhand(&dir, &topics).args(["import", "bad.csv", "none.csv", "good.csv"]));
    let expected = "bad.csv: 1 row, 0 accepted, 1 refused\ngood.csv: 1 row, 1 accepted, 0 refused\n";
    assert_eq!((code, lines.as_str()), (Some(2), expected), "{errors}");
    assert!(errors.contains("none.csv: No such file"), "{errors}");

    let tail = |topic: &str, options: &[&str]| {
        let arguments = ["tail", topic, "--from", "beginning", "--limit", "1"];
        run(onhand(&dir, &topics).args(arguments).args(options))
    };
    let (code, line, errors) = tail(&format!("{topics}-events"), &[]);
    assert_eq!(code, Some(0), "{errors}");
    let shown = "5-12        incoming  2019-04-14T03:47:13Z     400  8947695b-7f19-44b6-96b6-7f8ed041fe57\n";
    assert!(line.ends_with(shown), "{line}");
    let (_, line, _) = tail(&format!("{topics}-errors"), &[]);
    assert!(line.contains(r#"value: "4000000000000" is not a whole number from 1 to 2147483647  bad.csv:2"#), "{line}");
    let events = format!("{topics}-events");
    let (code, lines, _) = run(onhand(&dir, &topics).args(["tail", &events, "--from", "start", "--no-follow"]));
    assert_eq!((code, lines.lines().count()), (Some(0), 2), "{lines}");
    let (_, line, _) = tail(&format!("{topics}-errors"), &["--json"]);
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((record["value"]["line"].as_u64(), record["key"].is_null()), (Some(2), true));
}

#[test]
fn tail_of_an_unknown_topic_names_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let topics = sandbox::shared().fresh_name("known");
    fs::write(dir.path().join("empty.csv"), "").unwrap();
    run(onhand(&dir, &topics).args(["import", "empty.csv"]));
    let (code, _, errors) = run(onhand(&dir, &topics).args(["tail", "unheard-of"]));
    assert_eq!(code, Some(2));
    assert!(
        errors.contains(r#"there is no topic "unheard-of""#) && errors.contains(&format!("{topics}-events")),
        "{errors}"
    );
}
