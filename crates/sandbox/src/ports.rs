//! TCP ports that stay the same between runs.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::wait_until;

/// Below the ports that systems hand out for outgoing connections (from 32768 on Linux, 49152 on
/// macOS). In that range a client that retries against a stopped server can be given the server's
/// port and connect to itself, and the server then never gets it back.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// `N` free ports: those written in `file` where they are still free, else new ones, which are
/// written there.
pub(crate) fn stable<const N: usize>(file: &Path) -> Result<[u16; N]> {
    let mut known = read_ports(file).into_iter();
    let mut ports = [0; N];
    for i in 0..N {
        let earlier = known.next().filter(|&port| is_free(port));
        ports[i] = match earlier.filter(|port| !ports[..i].contains(port)) {
            Some(port) => port,
            None => free_port(&ports[..i])?,
        };
    }
    let line = ports.map(|port| port.to_string()).join(" ");
    fs::write(file, line + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    Ok(ports)
}

/// Waits a few seconds for the ports in `file` to become free: a process that is being killed loses
/// its command line, which identifies it, before its sockets are closed.
pub(crate) fn await_release(file: &Path) {
    let ports = read_ports(file);
    wait_until(Duration::from_secs(5), || ports.iter().all(|&port| is_free(port)));
}

fn read_ports(file: &Path) -> Vec<u16> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map_while(|word| word.parse().ok()).collect()
}

/// Whether a server could listen on it now.
fn is_free(port: u16) -> bool {
    port != 0 && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port(taken: &[u16]) -> Result<u16> {
    let random = RandomState::new();
    let span = u64::from(RANGE.end - RANGE.start);
    (0..1000u32)
        .map(|attempt| RANGE.start + (random.hash_one(attempt) % span) as u16)
        .find(|port| !taken.contains(port) && is_free(*port))
        .context("no free port found on 127.0.0.1 between 15000 and 32000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stay_the_same_while_they_are_free_and_change_when_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ports");
        let first = stable::<2>(&file).unwrap();
        assert_eq!(stable::<2>(&file).unwrap(), first);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first[0])).unwrap();
        let second = stable::<2>(&file).unwrap();
        assert_ne!(second[0], first[0]);
        assert_eq!(second[1], first[1]);
    }
}
