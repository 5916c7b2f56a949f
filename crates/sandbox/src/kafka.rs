//! A private, single-node Apache Kafka (KRaft): created, started, stopped, killed, paused, restarted.

mod class_archive;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Process, has_argument, pid_in, signal, tail, wait_until};
use crate::{java, maven, ports, spawner};
use class_archive::ClassArchive;

/// Recovery after a crash reads the segments that were open.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

const POM: &str = include_str!("../../../dev/kafka/pom.xml");
/// The version that the POM fetches.
const VERSION: &str = "4.3.1";

/// A private Kafka broker on 127.0.0.1, stopped when dropped.
#[derive(Debug)]
pub struct Kafka {
    /// Its TCP port on 127.0.0.1, the same at the next start if it is still free.
    pub port: u16,
    jars: PathBuf,
    dir: PathBuf,
    archive: ClassArchive,
    process: Option<Process>,
}

impl Kafka {
    /// Starts a broker with its data in `root/kafka`, which is created at the first start and
    /// reused later. Returns when it answers. Topics are not created by using them.
    pub fn start(root: &Path) -> Result<Self> {
        Self::launch(root, &|line| tracing::info!("{line}"))
    }

    pub(crate) fn launch(root: &Path, report: &dyn Fn(&str)) -> Result<Self> {
        let dir = root.join("kafka");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        let formatted = dir.join("data/meta.properties").exists();
        if !formatted {
            java::check()?;
        }
        let jars = jars(report)?;
        if dir.join("pid").exists() {
            stop_stale_server(&dir)?;
            ports::await_release(&dir.join("ports"));
        }
        let [port, controller] = ports::stable(&dir.join("ports"))?;
        fs::write(dir.join("server.properties"), properties(&dir, port, controller))?;
        File::create(dir.join("kafka.log"))?;
        let mut broker = Self { port, archive: ClassArchive::next_to(&jars, port), jars, dir, process: None };
        if !formatted {
            report("creating a private Kafka");
            broker.format()?;
        }
        broker.run()?;
        Ok(broker)
    }

    /// Where clients find it: `127.0.0.1:PORT`.
    pub fn broker(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The broker's process id; none while it is stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Shuts it down; with SIGKILL if that takes longer than 30 seconds.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.resume();
            process.end(&[libc::SIGTERM], STOPPED_WITHIN);
            self.archive.keep(matches!(process.exit_status(), Ok(Some(_))));
            process.kill();
            let _ = fs::remove_file(self.dir.join("pid"));
        }
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again on the same port and data, after stopping it if it runs. Returns when it
    /// answers.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.run()
    }

    /// Freezes the broker: connections stay open and nothing answers.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Undoes [`Kafka::pause`].
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    /// Gives a new data directory its cluster id.
    fn format(&self) -> Result<()> {
        let mut tool = command(&self.jars, "ERROR");
        tool.args(self.archive.read_option()).arg("-XX:TieredStopAtLevel=1");
        tool.arg("kafka.tools.StorageTool").args(["format", "-t", &cluster_id()?, "-c"]);
        tool.arg(self.dir.join("server.properties"));
        let log = self.log()?;
        tool.stdout(log.try_clone()?).stderr(log);
        let status = spawner::spawn(tool, libc::SIGKILL).context("cannot run java")?.wait()?;
        ensure!(status.success(), "Kafka could not format its data directory: {}", self.log_excerpt());
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let mut java = command(&self.jars, "WARN");
        java.arg(self.archive.read_option().unwrap_or_else(|| self.archive.write_option()));
        java.args(["-Xms256m", "-Xmx512m", "kafka.Kafka"]);
        java.arg(self.dir.join("server.properties"));
        let log = self.log()?;
        java.stdout(log.try_clone()?).stderr(log);
        let child = spawner::spawn(java, libc::SIGKILL);
        if child.is_err() {
            java::check()?;
        }
        let process = self.process.insert(Process::new(child.context("cannot run java")?));
        fs::write(self.dir.join("pid"), process.pid().to_string())?;
        let mut ended = None;
        let ready = wait_until(READY_WITHIN, || {
            ended = process.exit_status().transpose();
            ended.is_some() || answers(self.port)
        });
        if let Some(status) = ended.transpose()? {
            self.process = None;
            java::check()?;
            bail!("Kafka ended ({status}): {}", self.log_excerpt());
        }
        ensure!(ready, "Kafka does not answer after 2 minutes: {}", self.log_excerpt());
        Ok(())
    }

    fn log(&self) -> Result<File> {
        let path = self.dir.join("kafka.log");
        let log = OpenOptions::new().append(true).create(true).open(&path);
        log.with_context(|| format!("cannot write {}", path.display()))
    }

    fn log_excerpt(&self) -> String {
        let log = self.dir.join("kafka.log");
        format!("see {}\n{}", log.display(), tail(&log))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The directory of Kafka's jars, fetched at the first call on this machine.
fn jars(report: &dyn Fn(&str)) -> Result<PathBuf> {
    let name = format!("kafka-{VERSION}");
    maven::jars(&name, POM, "Apache Kafka (54 MB)", "set KAFKA_BROKER_URL to a broker of yours", report)
}

fn command(jars: &Path, log_level: &str) -> Command {
    let mut java = java::command(jars, log_level);
    // Against G1: the same rate (150-200K records/s of 180 bytes on 2 cores) with 90 MB less.
    java.args(["-XX:+UseSerialGC", "-Xshare:auto"]);
    java
}

/// Stops a broker of an earlier run, which was killed, that still uses this data.
pub(crate) fn stop_stale_server(dir: &Path) -> Result<()> {
    let file = dir.join("pid");
    let Some(pid) = pid_in(&file).filter(|&pid| has_argument(pid, dir)) else {
        return Ok(());
    };
    for (how, seconds) in [(libc::SIGTERM, 20), (libc::SIGKILL, 10)] {
        signal(pid, libc::SIGCONT);
        signal(pid, how);
        if wait_until(Duration::from_secs(seconds), || !has_argument(pid, dir)) {
            return Ok(());
        }
    }
    bail!("another Kafka still uses {}: stop process {pid}", dir.display())
}

/// One node that is broker and controller; private data, so nothing expires; one copy of
/// everything; few internal partitions; buffers that fit a small heap. After a crash the broker may
/// come back only when the session of its earlier life has ended, 9 s by default.
fn properties(dir: &Path, port: u16, controller: u16) -> String {
    // A backslash is an escape in Java's property files.
    let data = dir.join("data").display().to_string().replace('\\', "\\\\");
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
log.retention.ms=-1
log.cleaner.dedupe.buffer.size=16777216
offsets.retention.minutes=5256000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
"
    )
}

/// 16 random bytes in URL-safe base64, as Kafka prints its ids. The first is kept below the last
/// quarter, so that the id never starts with a dash.
fn cluster_id() -> io::Result<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[0] &= 0x3f;
    let bits = u128::from_be_bytes(bytes);
    let digit = |i: u32| {
        let shifted = if i < 21 { bits >> (122 - 6 * i) } else { bits << 4 };
        char::from(DIGITS[(shifted & 63) as usize])
    };
    Ok((0..22).map(digit).collect())
}

/// Whether a broker answers an ApiVersions request (version 0, no client id).
fn answers(port: u16) -> bool {
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let limit = Duration::from_secs(2);
    let exchange = || -> io::Result<[u8; 8]> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&REQUEST)?;
        let mut reply = [0; 8];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    };
    // The reply's length, then the request's correlation id.
    exchange().is_ok_and(|reply| reply[4..] == [0, 0, 0, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jars_are_of_the_version_that_the_pom_names() {
        assert!(POM.contains(&format!("<kafka.version>{VERSION}</kafka.version>")));
    }

    #[test]
    fn a_cluster_id_is_22_digits_of_url_safe_base64_that_start_with_a_letter() {
        for _ in 0..1000 {
            let id = cluster_id().unwrap();
            assert_eq!(id.len(), 22);
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            assert!(id.starts_with(|c: char| c.is_ascii_uppercase()), "{id}");
        }
    }
}
