//! A child process, and what it used.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// How long so many things took, and what the process used meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) count: u64,
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_mib: f64,
}

impl Measured {
    /// Things a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    /// Processor time of each, in microseconds.
    pub(crate) fn cpu_us_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count as f64
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.0}/s  {:>6.2} us of cpu each", self.rate(), self.cpu_us_each())?;
        if self.peak_mib > 0.0 {
            write!(f, "  {:>4.0} MiB", self.peak_mib)?;
        }
        Ok(())
    }
}

/// A child process that is measured; killed when dropped before its end.
pub(crate) struct Process {
    child: Child,
    ended: bool,
}

impl Process {
    /// This program again, as one of its children.
    pub(crate) fn start(arguments: &[&str], variables: &[(String, String)]) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .env("LOG_LEVEL", std::env::var("LOG_LEVEL").unwrap_or_else(|_| "warn".into()))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        Process::spawn(command)
    }

    /// Another program.
    pub(crate) fn spawn(mut command: Command) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Process { child, ended: false })
    }

    /// Fails if it has ended by itself.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            bail!("a measured process ended: {status}");
        }
        Ok(())
    }

    /// Asks it to stop (or just waits), and returns what it used: processor time and peak memory.
    pub(crate) fn end(mut self, ask: bool) -> Result<(Duration, f64)> {
        let pid = self.child.id() as libc::pid_t;
        // not ru_maxrss: that also counts this program's memory, shared until the child's exec. One
        // that ends by itself is not asked: it would be asked too early
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        let peak_mib = peak.filter(|_| ask).map_or(0.0, |kib: f64| kib / 1024.0);
        // SAFETY: the child is not waited for yet, so the pid is its own; wait4 fills what it is given.
        let (status, usage) = unsafe {
            if ask {
                libc::kill(pid, libc::SIGTERM);
            }
            let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
            ensure!(libc::wait4(pid, &mut status, 0, &mut usage) == pid, "cannot wait for a measured process");
            (ExitStatus::from_raw(status), usage)
        };
        self.ended = true;
        // Java's exit status after a clean shutdown on SIGTERM
        let by_signal = ask && status.code() == Some(128 + libc::SIGTERM);
        ensure!(status.success() || by_signal, "a measured process ended: {status}");
        let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
        Ok((time(usage.ru_utime) + time(usage.ru_stime), peak_mib))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
