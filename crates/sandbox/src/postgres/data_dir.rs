//! Where a private Postgres keeps its data: `ROOT/postgres`, or, when it runs as a user who may not
//! enter ROOT, a directory in /var/tmp that a link `ROOT/postgres` points to.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::stale_server;
use crate::account::{Account, is_ours};
use crate::short_hash;

/// The directory for everything of this Postgres; created if missing. `root` is canonical.
pub(crate) fn prepare(root: &Path, account: &Account, report: &dyn Fn(&str)) -> Result<PathBuf> {
    let dir = root.join("postgres");
    let failed = || format!("cannot prepare {}", dir.display());
    if account.may_enter(root) {
        if dir.is_symlink() {
            remove_for(root)?;
            fs::remove_file(&dir).with_context(failed)?;
        }
        make(&dir).with_context(failed)?;
        return Ok(dir);
    }
    let elsewhere = PathBuf::from(format!("/var/tmp/onhand-{}", short_hash(root.as_os_str().as_encoded_bytes())));
    report(&format!(
        "Postgres' data goes to {}, because user {} may not enter {}",
        elsewhere.display(),
        account.name,
        root.display()
    ));
    // Without the link, the data belongs to an earlier root of the same name.
    let linked = fs::read_link(&dir).is_ok_and(|to| to == elsewhere);
    if elsewhere.symlink_metadata().is_ok() {
        ensure!(
            is_ours(&elsewhere)?,
            "{} belongs to another user: remove it, or choose another data directory",
            elsewhere.display()
        );
        if !linked {
            remove(&elsewhere)?;
        }
    }
    make(&elsewhere).with_context(failed)?;
    if !linked {
        let _ = fs::remove_file(&dir);
        symlink(&elsewhere, &dir).with_context(failed)?;
    }
    Ok(elsewhere)
}

/// Removes the data of the Postgres of `root`, wherever it is, and stops a server that uses it.
pub(crate) fn remove_for(root: &Path) -> Result<()> {
    let dir = root.join("postgres");
    match fs::read_link(&dir) {
        Ok(elsewhere) if elsewhere.exists() && is_ours(&elsewhere)? => remove(&elsewhere),
        Ok(_) => Ok(()),
        Err(_) if dir.exists() => remove(&dir),
        Err(_) => Ok(()),
    }
}

fn remove(dir: &Path) -> Result<()> {
    for data in fs::read_dir(dir)?.flatten().map(|entry| entry.path()) {
        stale_server::stop(&data)?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}
