//! What can be seen of the command line without a server.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// With servers of the environment, so that nothing is started.
fn onhand() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onhand"));
    command.envs([("KAFKA_BROKER_URL", "127.0.0.1:9"), ("POSTGRES_HOSTNAME", "127.0.0.1:9")]);
    command.envs([("POSTGRES_USER", "u"), ("POSTGRES_PASSWORD", "p"), ("POSTGRES_DB", "d")]);
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in
        ["demo", "up", "with", "status", "tail", "import", "generate", "verify", "offsets", "run", "completions", "man"]
    {
        let (code, help, _) = run(onhand().args([command, "--help"]));
        assert!(code == Some(0) && help.contains("Example") && help.contains(&format!("onhand {command}")), "{help}");
    }
}

#[test]
fn shells_and_man_learn_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(onhand().args(["completions", shell]));
        assert!(code == Some(0) && script.contains("status") && script.contains("no-follow"), "{shell}: {script}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert_eq!(run(onhand().args(["man", "--dir"]).arg(&pages)), (Some(0), String::new(), String::new()));
    let overview = fs::read_to_string(pages.join("onhand.1")).unwrap();
    assert!(overview.contains("onhand\\-tail(1)"), "{overview}");
    let (code, page, _) = run(onhand().args(["man", "tail"]));
    assert_eq!((code, page), (Some(0), fs::read_to_string(pages.join("onhand-tail.1")).unwrap()));
    let (code, _, said) = run(onhand().args(["man", "frobnicate"]));
    assert!(code == Some(2) && said.contains("there is no command"), "{said}");
}

#[test]
fn errors_end_with_status_2() {
    assert_eq!(run(&mut onhand()).0, Some(2));
    assert_eq!(run(onhand().arg("frobnicate")).0, Some(2));
    assert_eq!(run(onhand().args(["generate", "--rows", "many"])).0, Some(2));
    let error = "onhand: the share of bad is 2, expected 0 to 1\n";
    assert_eq!(run(onhand().args(["generate", "--bad", "2"])), (Some(2), String::new(), error.into()));
}

#[test]
fn env_file_sets_what_the_environment_leaves_open_and_only_where_it_is_for_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| fs::write(dir.path().join(".env"), text).unwrap();
    let in_it = |arguments: &[&str]| {
        let mut command = onhand();
        command.current_dir(dir.path()).args(arguments).env_remove("KAFKA_BROKER_URL").env_remove("METRICS_ADDRESS");
        command
    };
    write("# of Compose\nKAFKA_BROKER_URL='127.0.0.1:7' # nobody\nKAFKA_TOPIC_PARTITIONS=many\n");
    let (code, _, said) = run(&mut in_it(&["tail", "events"]));
    assert!(
        code == Some(2) && said.contains("settings from .env") && said.contains("KAFKA_TOPIC_PARTITIONS"),
        "{said}"
    );
    let (code, _, said) = run(in_it(&["tail", "events"]).env("KAFKA_TOPIC_PARTITIONS", "3"));
    assert!(code == Some(2) && said.contains("no Kafka answers at 127.0.0.1:7 "), "{said}");
    let (_, _, said) =
        run(in_it(&["tail", "events"]).envs([("KAFKA_BROKER_URL", "127.0.0.1:5"), ("KAFKA_TOPIC_PARTITIONS", "")]));
    assert!(said.contains("no Kafka answers at 127.0.0.1:5 "), "{said}");
    let (code, _, said) = run(in_it(&["run", "stock"]).env("KAFKA_TOPIC_PARTITIONS", "3").env("POSTGRES_DB", ""));
    assert!(code == Some(2) && said.contains("settings from .env file=\".env\" variables=1"), "{said}");
    // a command's servers are not those of Compose
    let script = ["with", "--", "sh", "-c", "echo $KAFKA_BROKER_URL"];
    assert_eq!(run(in_it(&script).env("KAFKA_BROKER_URL", "127.0.0.1:9")).1, "127.0.0.1:9\n");
    assert_eq!(
        run(in_it(&["with", "--", "sh", "-c", "echo $KAFKA_TOPIC_PARTITIONS"]).env("KAFKA_BROKER_URL", "127.0.0.1:9"))
            .1,
        "\n"
    );

    write("KAFKA_BROKER_URL=127.0.0.1:7\n\nPOSTGRES_PASSWORD=\"secret\n");
    let said = "onhand: .env, line 3: the quote is not closed on this line\n";
    assert_eq!(run(&mut in_it(&["status"])), (Some(2), String::new(), said.to_owned()));
    assert_eq!(run(&mut in_it(&["generate", "--rows", "0"])).0, Some(0));
    assert_eq!(run(&mut in_it(&["status", "--help"])).0, Some(0));
}

#[test]
fn generate_writes_the_same_to_stdout_and_to_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.csv");
    let arguments = ["generate", "--rows", "20000", "--seed", "7"];
    let (code, stdout, _) = run(onhand().args(arguments));
    assert_eq!((code, stdout.lines().count()), (Some(0), 20_001));
    assert_eq!(run(onhand().args(arguments).arg("-o").arg(&file)), (Some(0), String::new(), String::new()));
    assert!(fs::read_to_string(&file).unwrap() == stdout, "the file differs");
}

#[test]
fn generate_replaces_a_file_only_when_forced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.csv");
    fs::write(&file, "mine").unwrap();
    let generate = |options: &[&str]| run(onhand().args(["generate", "--rows", "1", "-o"]).arg(&file).args(options));
    let exists = format!("onhand: {} exists; --force replaces it\n", file.display());
    assert_eq!(generate(&[]), (Some(2), String::new(), exists));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(generate(&["--force"]), (Some(0), String::new(), String::new()));
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
    // nothing there to lose
    assert_eq!(run(onhand().args(["generate", "--rows", "1", "-o", "/dev/null"])).0, Some(0));
}

#[test]
fn generate_ends_quietly_when_nobody_reads_on() {
    let mut child = onhand().arg("generate").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(128 + 13), ""));
}

#[test]
fn import_names_a_missing_file_at_once_though_kafka_is_away() {
    let expected = "onhand: no-such.csv: No such file or directory (os error 2)\n";
    assert_eq!(run(onhand().args(["import", "no-such.csv"])), (Some(2), String::new(), expected.into()));
    let expected = "onhand: src: is a directory\n";
    assert_eq!(run(onhand().args(["import", "src"])), (Some(2), String::new(), expected.into()));
}

#[test]
fn a_dry_run_lists_what_would_be_refused_without_kafka() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.csv");
    let header = "transaction_id,event_type,date,store_number,item_number,value";
    let row = "00000000-0000-0000-0000-000000000001,incoming,2019-04-14T03:47:13Z,4,3";
    fs::write(&file, format!("{header}\n{row},1\nbad\n{row},0\n")).unwrap();
    let shown = file.display();
    let reasons =
        ["the line has 1 fields, the header has 6", "value: \"0\" is not a whole number from 1 to 2147483647"];
    let expected = format!(
        "{shown}:3: {}\n{shown}:4: {}\n{shown}: 3 rows, 1 would be accepted, 2 would be refused\n",
        reasons[0], reasons[1]
    );
    let dry_run = |arguments: &[&str]| run(onhand().args(["import", "--dry-run"]).args(arguments).arg(&file));
    assert_eq!(dry_run(&[]), (Some(1), expected, String::new()));
    let (code, printed, _) = dry_run(&["--json"]);
    let summary: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let byte = header.len() + row.len() + 4;
    let refused = serde_json::json!([
        {"line": 3, "byte": byte, "column": null, "error": reasons[0]},
        {"line": 4, "byte": byte + 4, "column": "value", "error": reasons[1]},
    ]);
    assert_eq!((code, &summary["dry_run"], &summary["files"][0]["refused_rows"]), (Some(1), &true.into(), &refused));
    fs::write(&file, format!("{header}\n{row},1\n")).unwrap();
    assert_eq!(dry_run(&[]).0, Some(0));
    fs::write(&file, "").unwrap();
    assert_eq!(dry_run(&[]).0, Some(2));
}

#[test]
fn with_ends_as_its_command_ends() {
    let with = |command: &[&str]| run(onhand().args(["with", "--"]).args(command));
    assert_eq!(with(&["sh", "-c", "echo out; exit 7"]), (Some(7), "out\n".into(), String::new()));
    assert_eq!(with(&["sh", "-c", "kill -KILL $$"]).0, Some(128 + 9));
    let (code, _, stderr) = with(&["no-such-command"]);
    assert!(code == Some(127) && stderr.contains("cannot run no-such-command"), "{stderr}");
}

#[test]
fn with_passes_a_signal_on_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'echo asked to end; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = onhand()
        .env("TMPDIR", dir.path())
        .args(["with", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal(), rest.as_str()), (Some(3), None, "asked to end\n"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn with_removes_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let with = |script: &str| run(onhand().env("TMPDIR", dir.path()).args(["with", "--", "sh", "-c", script]));
    let (_, left, _) = with("kill -KILL $PPID; echo $PPID");
    let left = format!("onhand-with-{}", left.trim());
    assert!(dir.path().join(&left).join("lock").exists());
    // of a process that is there: ours
    let living = format!("onhand-with-{}", std::process::id());
    fs::create_dir(dir.path().join(&living)).unwrap();
    assert_eq!(with("exit 0").0, Some(0));
    let there: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, [living.as_str()]);
}

#[test]
fn a_second_up_on_the_same_data_says_so_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut lock = File::create(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    writeln!(lock, "4711").unwrap();
    let (code, _, stderr) = run(onhand().arg("up").arg("--data").arg(dir.path()));
    let expected = format!(
        "onhand: another onhand is running on {} (pid 4711); stop it or choose another data directory\n",
        dir.path().display()
    );
    assert_eq!((code, stderr), (Some(2), expected));
}

#[test]
fn a_wrong_setting_is_named_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = onhand();
    up.arg("up").arg("--data").arg(dir.path().join("data")).env("STOCK_RETRY_MS", "soon").env("POSTGRES_DB", "");
    let (code, _, stderr) = run(&mut up);
    assert!(code == Some(2) && stderr.contains("STOCK_RETRY_MS") && stderr.contains("POSTGRES_DB"), "{stderr}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn up_that_waits_for_its_servers_ends_when_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = onhand();
    up.arg("up").current_dir(dir.path()).env("KAFKA_EVENTS_TOPIC", "mine").stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = up.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    let note = fs::read_to_string(dir.path().join(".onhand/environment")).unwrap();
    let directory = dir.path().join("importer").display().to_string();
    let noted = [r#""KAFKA_EVENTS_TOPIC": "mine""#, r#""POSTGRES_PASSWORD": "p""#, &directory];
    assert!(noted.iter().all(|part| note.contains(part)), "for the other commands: {note}");
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let asked = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(asked.elapsed() < Duration::from_secs(10), "it does not end");
        thread::sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = fs::read_dir(dir.path().join(".onhand")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn up_reports_the_health_of_each_of_its_services() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = onhand();
    up.arg("up")
        .current_dir(dir.path())
        .env("METRICS_ADDRESS", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = up.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let served = lines.find(|line| line.contains("metrics and health on")).expect("an address");
    let address =
        served.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    // whatever it logs is read, so that it can go on
    let log = thread::spawn(move || lines.collect::<Vec<_>>());
    let expected = ["importer: kafka: waiting for 127.0.0.1:9", "stock: postgres: waiting for u@127.0.0.1:9"];
    let asked = Instant::now();
    let (answer, reported) = loop {
        let mut answer = String::new();
        let answered = TcpStream::connect(&address).and_then(|mut stream| {
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        let reported = expected.iter().all(|part| answer.lines().any(|line| line.starts_with(part)));
        if reported || answered.is_err() || asked.elapsed() > Duration::from_secs(30) {
            break (answer, reported);
        }
        thread::sleep(Duration::from_millis(50));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reported, "{answer}\n{}", log.join().unwrap().join("\n"));
}
