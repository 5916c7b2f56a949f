//! Which user a server runs as, and which directories that user may enter.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Who Postgres runs as. Its programs refuse root, so for root it is user postgres, else nobody;
/// it must be in the password file, where initdb looks up its own name.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) name: &'static str,
    uid: u32,
    gid: u32,
    /// Not our own user: the child changes to it, and must own the files that it uses.
    pub(crate) is_other_user: bool,
}

impl Account {
    pub(crate) fn for_postgres() -> Result<Self> {
        // SAFETY: neither call can fail or touches memory.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if uid != 0 {
            return Ok(Self { name: "you", uid, gid, is_other_user: false });
        }
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| {
                let (uid, gid) = ids(&users, name)?;
                Some(Self { name, uid, gid, is_other_user: true })
            })
            .context(
                "Postgres refuses to run as root, and neither user postgres nor nobody exists: \
                 add one, or set POSTGRES_HOSTNAME to a server of yours",
            )
    }

    /// Makes `command` run as this user.
    pub(crate) fn run(&self, command: &mut Command) {
        if self.is_other_user {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Makes this user the owner of a file or directory.
    pub(crate) fn give_ownership(&self, path: &Path) -> io::Result<()> {
        if self.is_other_user { chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// Whether this user may enter `dir` and every directory above it.
    pub(crate) fn may_enter(&self, dir: &Path) -> bool {
        !self.is_other_user
            || dir.ancestors().all(|part| {
                fs::metadata(part).is_ok_and(|of| {
                    let bit = match () {
                        () if of.uid() == self.uid => 0o100,
                        () if of.gid() == self.gid => 0o010,
                        () => 0o001,
                    };
                    of.mode() & bit != 0
                })
            })
    }
}

/// Whether `dir` is a real directory that we own: anyone may create entries in /tmp and /var/tmp.
pub(crate) fn is_ours(dir: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(dir)?;
    // SAFETY: geteuid cannot fail.
    Ok(found.is_dir() && found.uid() == unsafe { libc::geteuid() })
}

/// User and group id of `name` in the text of a password file.
fn ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_name = fields.next()? == name;
        let mut ids = fields.skip(1).map_while(|id| id.parse().ok());
        is_name.then_some((ids.next()?, ids.next()?))
    })
}
