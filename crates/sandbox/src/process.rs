//! A running child process: signals, waiting with a time limit, and processes of an earlier run.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is checked while waiting for it.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, at most for `limit`; returns whether it held.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// A child process and, where it forks, its own children.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its exit status, once it has ended.
    pub(crate) fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Sends the signals in turn, waiting up to `limit` for each to end the process.
    pub(crate) fn end(&mut self, signals: &[i32], limit: Duration) {
        for &signal_number in signals {
            // An ended but unreaped child keeps its pid, so this never hits another process.
            if !matches!(self.exit_status(), Ok(None)) {
                return;
            }
            signal(self.pid(), signal_number);
            if wait_until(limit, || !matches!(self.exit_status(), Ok(None))) {
                return;
            }
        }
    }

    /// SIGKILL for it and its children, and waits for its end.
    pub(crate) fn kill(&mut self) {
        if !matches!(self.exit_status(), Ok(None)) {
            return;
        }
        let children = children_of(self.pid());
        signal(self.pid(), libc::SIGKILL);
        for child in children {
            signal(child, libc::SIGKILL);
        }
        let _ = self.0.wait();
    }

    /// Freezes it and its children: first itself, so that it starts no further ones.
    pub(crate) fn pause(&self) {
        signal(self.pid(), libc::SIGSTOP);
        for child in children_of(self.pid()) {
            signal(child, libc::SIGSTOP);
        }
    }

    /// Undoes [`Process::pause`].
    pub(crate) fn resume(&self) {
        for child in children_of(self.pid()) {
            signal(child, libc::SIGCONT);
        }
        signal(self.pid(), libc::SIGCONT);
    }
}

/// Sends a signal; a process that has already ended is not an error.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: kill has no memory effects. A pid of 0 or 1 would hit our own group or init.
    if pid > 1 {
        unsafe { libc::kill(pid as libc::pid_t, signal) };
    }
}

/// Whether there is a process of this id, anyone's.
pub(crate) fn is_running(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let there = unsafe { libc::kill(pid as libc::pid_t, 0) } == 0;
    there || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// The direct children of a process. Postgres' backends are each a session of their own, so
/// signalling the process group would not reach them.
fn children_of(parent: u32) -> Vec<u32> {
    if Path::new("/proc/self/stat").exists() {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        return all
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| parent_of(pid) == Some(parent))
            .collect();
    }
    let pgrep = Command::new("pgrep").args(["-P", &parent.to_string()]).output();
    pgrep.map_or_else(
        |_| Vec::new(),
        |out| {
            let text = String::from_utf8_lossy(&out.stdout);
            text.lines().filter_map(|l| l.trim().parse().ok()).collect()
        },
    )
}

/// From `/proc/PID/stat`: the field after the state, which follows the command's last bracket.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Whether process `pid` is running with `argument` on its command line. A pid from a file may by
/// now be another program's; a zombie has no command line.
pub(crate) fn has_argument(pid: u32, argument: &Path) -> bool {
    let wanted = argument.as_os_str().as_encoded_bytes();
    let line = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => line,
        Err(_) if Path::new("/proc/self/cmdline").exists() => return false,
        Err(_) => Command::new("ps")
            .args(["-o", "args=", "-p", &pid.to_string()])
            .output()
            .map(|out| out.stdout)
            .unwrap_or_default(),
    };
    line.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether any process has `dir` as its working directory (Linux; elsewhere always false).
pub(crate) fn has_process_in(dir: &Path) -> bool {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.map(|entry| entry.path().join("cwd")).any(|cwd| fs::read_link(cwd).is_ok_and(|at| at == dir))
}

/// The first line of a file that starts with a process id.
pub(crate) fn pid_in(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// The last lines of a server's log, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
