//! Whether a file is complete: it is unchanged for some time, and nobody is writing it.

use std::{
    fs::File,
    time::{Duration, Instant, SystemTime},
};

use crate::read::source::FileState;

/// How long a file must be unchanged to be complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuietPeriods {
    /// `IMPORT_QUIET_MS`: if it is known that nobody has it open for writing.
    pub(crate) known: Duration,
    /// `IMPORT_UNSURE_MS`: if its writers cannot be detected, or if it may end mid-line.
    pub(crate) unsure: Duration,
}

/// Whether a file is open for writing, as far as the operating system can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    None,
    Some,
    /// The operating system cannot tell: another owner's file, a network mount, not Linux.
    Unknown,
}

/// File systems that only this machine writes to, by the magic number that `statfs` returns: a lease on their
/// files covers every possible writer. On a network or FUSE mount, a lease covers only writers on this
/// machine, or is refused as if there always were one.
#[cfg(target_os = "linux")]
fn is_local(file_system: u32) -> bool {
    const LOCAL: [u32; 13] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // xfs
        0x9123_683e, // btrfs
        0x0102_1994, // tmpfs
        0x8584_58f6, // ramfs
        0x794c_7630, // overlayfs
        0x2fc1_2fc1, // zfs
        0xf2f5_2010, // f2fs
        0xca45_1a4e, // bcachefs
        0x4d44,      // vfat
        0x2011_bab0, // exfat
        0x7366_746e, // ntfs3
        0x3153_464a, // jfs
    ];
    LOCAL.contains(&file_system)
}

/// Takes a lease on the file, which the kernel refuses while the file is open for writing, and gives it back.
#[cfg(target_os = "linux")]
pub(crate) fn writers(file: &File) -> Writers {
    use std::os::fd::AsRawFd;
    if !rustix::fs::fstatfs(file).is_ok_and(|found| is_local(found.f_type as u32)) {
        return Writers::Unknown;
    }
    /// `F_SETSIG` of asm-generic/fcntl.h, the same on every architecture.
    const SET_SIGNAL: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // SAFETY: plain system calls on a descriptor that `file` holds open.
    unsafe {
        // when the file is opened for writing meanwhile, the kernel sends a signal: not SIGIO, which would
        // end the process, but one that is ignored by default
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

/// Only Linux can tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn writers(_: &File) -> Writers {
    Writers::Unknown
}

/// A file's state, and since when it has been observed unchanged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stability {
    pub(crate) state: FileState,
    since: Instant,
}

impl Stability {
    pub(crate) fn new(state: FileState, now: Instant) -> Stability {
        Stability { state, since: now }
    }

    /// Whether the state is unchanged; if not, the quiet period starts again.
    pub(crate) fn observe(&mut self, state: FileState, now: Instant) -> bool {
        let same = self.state == state;
        if !same {
            *self = Stability::new(state, now);
        }
        same
    }

    /// Whether the file is complete, as far as can be known. `may_be_cut`: it is empty, its last line has no
    /// line break, or it is a truncated packed file, so that its writer may only be pausing.
    pub(crate) fn is_complete(
        &self,
        writers: Writers,
        may_be_cut: bool,
        times: QuietPeriods,
        now: Instant,
        clock: SystemTime,
    ) -> bool {
        let observed = now.saturating_duration_since(self.since);
        // the modification time counts only if it comes from this machine's clock
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(self.state.modified_ns.try_into().unwrap_or(0));
        let age = clock.duration_since(modified).ok();
        match writers {
            Writers::Some => false,
            Writers::None => {
                observed.max(age.unwrap_or_default())
                    >= if may_be_cut { times.known.max(times.unsure) } else { times.known }
            }
            Writers::Unknown => observed >= times.known.max(times.unsure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_complete_when_it_was_quiet_and_is_not_open_for_writing() {
        let times = QuietPeriods { known: Duration::from_millis(250), unsure: Duration::from_secs(5) };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let complete = |observed: u64, age: u64, writers, cut| {
            let modified = (clock - Duration::from_millis(age)).duration_since(SystemTime::UNIX_EPOCH);
            let modified_ns = modified.expect("after 1970").as_nanos() as i64;
            let state = FileState { size: 1, modified_ns, ..FileState::default() };
            Stability { state, since: now - Duration::from_millis(observed) }
                .is_complete(writers, cut, times, now, clock)
        };
        assert!(!complete(90_000, 90_000, Writers::Some, false));
        assert!(complete(0, 900, Writers::None, false), "an old file that was moved in");
        assert!(complete(300, 0, Writers::None, false));
        assert!(!complete(100, 100, Writers::None, false));
        assert!(!complete(4_900, 90_000, Writers::Unknown, false), "a server's clock may be wrong");
        assert!(complete(5_100, 0, Writers::Unknown, false));
        for writers in [Writers::None, Writers::Unknown] {
            assert!(!complete(4_900, 4_900, writers, true), "{writers:?}");
            assert!(complete(5_100, 5_100, writers, true), "{writers:?}");
        }
        assert!(complete(0, 5_100, Writers::None, true), "an old file that was moved in, cut or not");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_local_file_systems_can_tell_who_writes() {
        for (magic, local) in [(0xef53, true), (0x9123_683e, true), (0x6969, false), (0x6573_5546, false)] {
            assert_eq!(is_local(magic), local, "{magic:x}");
        }
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
