//! `onhand import` as a person or a script uses it.

mod system;

use std::{
    fs::{self, File},
    io::Write,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use system::{System, until};

const HEADER: &str = "transaction_id,event_type,date,store_number,item_number,value\n";

fn rows(numbers: std::ops::Range<u32>) -> String {
    let row =
        |number| format!("00000000-0000-0000-0000-{number:012},incoming,2019-04-14T03:47:13Z,4,3,{}\n", number + 1);
    numbers.map(row).collect()
}

/// Runs a command with this standard input.
fn run_with(system: &System, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let path = system.dir.path().join("stdin");
    fs::write(&path, input).expect("written");
    let mut command = system.onhand(arguments);
    let Output { status, stdout, stderr } = command.stdin(File::open(path).expect("a file")).output().expect("it runs");
    println!("{}", String::from_utf8_lossy(&stderr));
    (status.code(), String::from_utf8(stdout).expect("text"))
}

#[test]
fn the_status_says_whether_all_was_accepted_refused_or_not_read() {
    let system = System::new(&[]);
    let write = |name: &str, text: String| fs::write(system.dir.path().join(name), text).expect("written");
    write("good.csv", HEADER.to_owned() + &rows(0..2));
    write("bad.csv", HEADER.to_owned() + "bad\n");
    write("unknown.csv", "a,b\n1,2\n".into());
    let (code, printed, said) = system.run(&["import", "good.csv"]);
    assert_eq!((code, printed.as_str()), (Some(0), "good.csv: 2 rows, 2 accepted, 0 refused\n"), "{said}");
    let (code, printed, _) = system.run(&["import", "good.csv", "bad.csv"]);
    assert_eq!((code, printed.lines().last()), (Some(1), Some("bad.csv: 1 row, 0 accepted, 1 refused")));
    for file in ["unknown.csv", "absent.csv"] {
        let (code, printed, said) = system.run(&["import", file, "bad.csv", "good.csv"]);
        assert_eq!(code, Some(2), "{printed}{said}");
        assert!(printed.ends_with("good.csv: 2 rows, 2 accepted, 0 refused\n"), "{printed}");
    }
    let topic = &system.topic;
    assert_eq!(system.records(topic), 8);
}

#[test]
fn standard_input_is_imported_and_summed_up_as_json() {
    let system = System::new(&[]);
    let (code, printed) = run_with(&system, &["import", "-"], &(HEADER.to_owned() + &rows(0..3)));
    assert_eq!((code, printed.as_str()), (Some(0), "-: 3 rows, 3 accepted, 0 refused\n"));
    fs::write(system.dir.path().join("a.csv"), HEADER.to_owned() + &rows(3..5) + "bad\n").expect("written");
    let (code, printed) = run_with(&system, &["import", "--json", "a.csv", "-", "absent.csv"], "a,b\n");
    let mut summary: Value = serde_json::from_str(&printed).expect("one JSON document");
    assert_eq!(code, Some(2));
    let files = summary["files"].take();
    assert_eq!(summary, json!({"dry_run": false, "rows": 3, "accepted": 2, "refused": 1, "files": null}));
    assert_eq!((&files[0]["path"], &files[0]["rows"], &files[0]["error"]), (&json!("a.csv"), &json!(3), &Value::Null));
    assert!(files[1]["error"].as_str().is_some_and(|error| error.contains("is not a header")), "{files}");
    assert_eq!(files[2], json!({"path": "absent.csv", "error": "absent.csv: No such file or directory (os error 2)"}));
    assert_eq!(system.records(&system.topic), 5);
}

#[test]
fn ctrl_c_says_what_is_acknowledged_and_where_to_go_on() {
    let system = System::new(&[]);
    let mut command = system.onhand(&["import", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("its input");
    let text = HEADER.to_owned() + &rows(0..100);
    stdin.write_all(text.as_bytes()).expect("written");
    stdin.flush().expect("written");
    until("the rows are on the topic", || (system.records(&system.topic) == 100).then_some(()));
    // SAFETY: the child is not waited for yet, so the pid is its own
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    drop(stdin);
    let expected = format!(
        "-: 100 rows, 100 accepted, 0 refused; stopped: everything before byte {} (line 102) is acknowledged\n",
        text.len()
    );
    assert_eq!(String::from_utf8_lossy(&stdout), expected, "{}", String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(2));
}
