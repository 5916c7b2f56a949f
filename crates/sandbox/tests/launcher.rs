//! Both servers and the process that starts them. The sandboxes are started by processes of their
//! own, which can be killed, and whose environment names no other servers.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{consume, create_topic, eventually, is_alive, produce, remove_elsewhere, root, sql};
use sandbox::{PgAddress, Sandbox, StartError};

/// The variable that tells [`launcher`] where to start a sandbox.
const ROOT: &str = "SANDBOX_TEST_ROOT";

#[test]
fn a_sandbox_says_where_its_servers_are_and_keeps_others_off_its_directory() {
    let (_parent, root) = root(false);
    let mut launched = launch(&root);
    let refused = Sandbox::start(&root, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, StartError::Busy { .. }));
    assert_eq!(
        refused.to_string(),
        format!(
            "another onhand is running on {} (pid {}); stop it or choose another data directory",
            root.display(),
            launched.process.id()
        )
    );

    assert_eq!(launched.sql("SELECT 7"), Some(7));
    create_topic(launched.broker(), "new");
    launched.end();
}

#[test]
fn both_servers_end_when_the_launching_process_is_killed_and_their_data_can_be_used_again() {
    let (_parent, root) = root(true);
    let mut first = launch(&root);
    assert!(first.servers.iter().all(|&pid| is_alive(pid)));
    first.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (42)");
    create_topic(first.broker(), "kept");
    produce(first.broker(), "kept", "hello");
    first.process.kill().unwrap();
    first.process.wait().unwrap();
    // At once, without waiting for the servers' end.
    let mut second = launch(&root);
    eventually("the servers of the killed launcher have ended", || !first.servers.iter().any(|&pid| is_alive(pid)));
    assert_eq!(first.variables, second.variables);
    assert_eq!(second.sql("SELECT n FROM t"), Some(42));
    assert_eq!(consume(second.broker(), "kept"), "hello");
    second.end();
    remove_elsewhere(&root);
}

#[test]
fn shared_servers_give_each_test_its_own_names() {
    let shared = sandbox::shared();
    let database = shared.fresh_database().unwrap();
    assert_ne!(shared.fresh_database().unwrap(), database);
    assert_eq!(sql(&shared.postgres, &database, "SELECT 7").unwrap(), Some(7));
    create_topic(&shared.broker, &shared.fresh_name("events"));
    create_topic(&shared.broker, &shared.fresh_name("events"));
    let variables = shared.environment(&database);
    assert!(variables.contains(&("POSTGRES_DB".into(), database)));
}

/// Not a test: what [`launch`] runs. Starts a sandbox, says where it is, and stays.
#[test]
fn launcher() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let sandbox = Sandbox::start(Path::new(&root), &mut |_| {}).unwrap();
    println!();
    for (name, value) in sandbox.environment() {
        println!("set {name} {value}");
    }
    let kafka = sandbox.kafka.as_ref().unwrap().pid().unwrap();
    let postgres = sandbox.postgres.as_ref().unwrap().pid().unwrap();
    println!("servers {kafka} {postgres}");
    loop {
        std::thread::park();
    }
}

/// A process that has started a sandbox.
struct Launched {
    process: Child,
    servers: Vec<u32>,
    variables: HashMap<String, String>,
}

/// Runs this test binary again, as [`launcher`] alone.
fn launch(root: &Path) -> Launched {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "launcher", "--nocapture"])
        .env(ROOT, root)
        .env_remove("KAFKA_BROKER_URL")
        .env_remove("POSTGRES_HOSTNAME")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut variables = HashMap::new();
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["set", name, value] => drop(variables.insert(name.to_owned(), value.to_owned())),
            ["servers", kafka, postgres] => {
                let servers = [kafka, postgres].map(|pid| pid.parse().unwrap()).into();
                return Launched { process, servers, variables };
            }
            _ => {}
        }
    }
    panic!("the launcher ended before its servers were there");
}

impl Launched {
    /// Runs statements in its database and returns the last one's first column, if it has rows.
    fn sql(&self, statements: &str) -> Option<i32> {
        let (host, port) = self.variables["POSTGRES_HOSTNAME"].split_once(':').unwrap();
        let at = PgAddress {
            host: host.into(),
            port: port.parse().unwrap(),
            user: self.variables["POSTGRES_USER"].clone(),
            password: self.variables["POSTGRES_PASSWORD"].clone(),
        };
        sql(&at, &self.variables["POSTGRES_DB"], statements).unwrap()
    }

    fn broker(&self) -> &str {
        &self.variables["KAFKA_BROKER_URL"]
    }

    /// Kills the process and waits until its servers have ended too.
    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        eventually("the servers have ended", || !self.servers.iter().any(|&pid| is_alive(pid)));
    }
}
