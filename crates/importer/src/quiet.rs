//! Whether somebody is still writing a file.

use std::{
    fs::{File, Metadata},
    time::{Duration, Instant, SystemTime},
};

/// How many times longer a file must be quiet that may be cut, where writers are not known.
const PATIENCE: u32 = 20;

/// Who has a file open for writing, as far as the system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    None,
    Some,
    /// Another owner's file, a network mount, another system: it can't be asked.
    Unknown,
}

/// Asks the kernel for a lease on the file, which it refuses while somebody has it open for
/// writing, and gives it back.
#[cfg(target_os = "linux")]
pub(crate) fn writers(file: &File) -> Writers {
    use std::os::fd::AsRawFd;
    /// `F_SETSIG` of asm-generic/fcntl.h, which is every architecture's.
    const SET_SIGNAL: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // SAFETY: plain system calls on a descriptor that `file` holds open.
    unsafe {
        // whoever opens the file for writing meanwhile makes the kernel send us a signal: not
        // SIGIO, which would end the process, but one that is ignored by default
        libc::fcntl(fd, SET_SIGNAL, libc::SIGURG);
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
            libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
            return Writers::None;
        }
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Writers::Some,
        _ => Writers::Unknown,
    }
}

/// Only Linux can be asked.
#[cfg(not(target_os = "linux"))]
pub(crate) fn writers(_: &File) -> Writers {
    Writers::Unknown
}

/// A file's size and time of change, and since when we have seen them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet {
    size: u64,
    modified: Option<SystemTime>,
    since: Instant,
}

impl Quiet {
    pub(crate) fn new(metadata: &Metadata, now: Instant) -> Quiet {
        Quiet { size: metadata.len(), modified: metadata.modified().ok(), since: now }
    }

    /// The size last seen.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file is as it was; if not, the quiet begins anew.
    pub(crate) fn observe(&mut self, metadata: &Metadata, now: Instant) -> bool {
        let same = self.size == metadata.len() && self.modified == metadata.modified().ok();
        if !same {
            *self = Quiet::new(metadata, now);
        }
        same
    }

    /// Whether the file is complete, as far as can be known. `cut`: it is empty, or its last line
    /// has no line break, so that a writer may well be in the middle of it.
    pub(crate) fn is_complete(
        &self,
        writers: Writers,
        cut: bool,
        quiet: Duration,
        now: Instant,
        clock: SystemTime,
    ) -> bool {
        let observed = now.saturating_duration_since(self.since);
        // the file's own time counts only where it is this machine's
        let age = self.modified.and_then(|modified| clock.duration_since(modified).ok());
        match writers {
            Writers::Some => false,
            Writers::None => observed.max(age.unwrap_or_default()) >= quiet,
            Writers::Unknown if cut => observed >= quiet.saturating_mul(PATIENCE),
            Writers::Unknown => observed >= quiet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_complete_when_it_was_quiet_and_nobody_writes() {
        let quiet = Duration::from_millis(250);
        let (now, clock) = (Instant::now(), SystemTime::now());
        let judge = |observed: u64, age: u64, writers, cut| {
            let modified = Some(clock - Duration::from_millis(age));
            Quiet { size: 1, modified, since: now - Duration::from_millis(observed) }
                .is_complete(writers, cut, quiet, now, clock)
        };
        let complete = |observed, age, writers| judge(observed, age, writers, false);
        assert!(!complete(900, 900, Writers::Some));
        assert!(complete(0, 900, Writers::None), "an old file that was moved in");
        assert!(complete(300, 0, Writers::None));
        assert!(!complete(100, 100, Writers::None));
        assert!(!complete(100, 900, Writers::Unknown), "a server's clock may be wrong");
        assert!(complete(300, 900, Writers::Unknown));
        assert!(!judge(4_900, 90_000, Writers::Unknown, true));
        assert!(judge(5_100, 90_000, Writers::Unknown, true));
        assert!(judge(300, 0, Writers::None, true), "nobody will end its last line");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_knows_who_writes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.csv");
        let writer = File::create(&path).expect("a file");
        let reader = File::open(&path).expect("a file");
        assert_eq!(writers(&reader), Writers::Some);
        drop(writer);
        assert_eq!(writers(&reader), Writers::None);
        drop(File::options().append(true).open(&path).expect("the lease was given back"));
    }
}
