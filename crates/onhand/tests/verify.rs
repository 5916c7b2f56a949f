//! How `onhand verify` ends when it cannot compare anything.

use std::{
    io::Read,
    net::TcpListener,
    process::{Command, Stdio},
};

fn verify(postgres: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onhand"));
    command.arg("verify").envs([("KAFKA_BROKER_URL", "127.0.0.1:9"), ("POSTGRES_HOSTNAME", postgres)]);
    command.envs([("POSTGRES_USER", "u"), ("POSTGRES_PASSWORD", "p"), ("POSTGRES_DB", "d")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn servers_that_are_away_are_neither_right_nor_wrong() {
    let ended = verify("127.0.0.1:9").arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(2), &[][..]), "{said}");
    assert!(said.starts_with("onhand: Postgres at u@127.0.0.1:9/d: "), "{said}");
}

#[test]
fn an_interrupted_one_has_found_nothing() {
    // a server that says nothing
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = verify(&server.local_addr().unwrap().to_string()).spawn().unwrap();
    let connected = server.accept().unwrap();
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let expected = "onhand: interrupted before everything was compared\n";
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(2), expected));
    drop(connected);
}
