//! Where a private Postgres keeps its data: `ROOT/postgres`, or, when it runs as a user who may not
//! enter ROOT, a directory in /var/tmp that a link `ROOT/postgres` points to.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::leftover;
use crate::account::{Account, is_ours};
use crate::short_hash;

/// The directory for everything of this Postgres; made when missing. `root` is canonical.
pub(crate) fn prepare(root: &Path, account: &Account, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let home = root.join("postgres");
    let failed = || format!("cannot prepare {}", home.display());
    if account.may_enter(root) {
        if home.is_symlink() {
            remove_of(root)?;
            fs::remove_file(&home).with_context(failed)?;
        }
        make(&home).with_context(failed)?;
        return Ok(home);
    }
    let elsewhere = PathBuf::from(format!("/var/tmp/onhand-{}", short_hash(root.as_os_str().as_encoded_bytes())));
    say(&format!(
        "Postgres' data goes to {}, because user {} may not enter {}",
        elsewhere.display(),
        account.name,
        root.display()
    ));
    // The link tells data of this root from that of an earlier one of the same name.
    let linked = fs::read_link(&home).is_ok_and(|to| to == elsewhere);
    if elsewhere.symlink_metadata().is_ok() {
        ensure!(
            is_ours(&elsewhere)?,
            "{} is another user's: remove it, or choose another data directory",
            elsewhere.display()
        );
        if !linked {
            remove(&elsewhere)?;
        }
    }
    make(&elsewhere).with_context(failed)?;
    if !linked {
        let _ = fs::remove_file(&home);
        symlink(&elsewhere, &home).with_context(failed)?;
    }
    Ok(elsewhere)
}

/// Removes the data of the Postgres of `root`, wherever it is, and stops a server that uses it.
pub(crate) fn remove_of(root: &Path) -> Result<()> {
    let home = root.join("postgres");
    match fs::read_link(&home) {
        Ok(elsewhere) if elsewhere.exists() && is_ours(&elsewhere)? => remove(&elsewhere),
        Ok(_) => Ok(()),
        Err(_) if home.exists() => remove(&home),
        Err(_) => Ok(()),
    }
}

fn remove(home: &Path) -> Result<()> {
    for data in fs::read_dir(home)?.flatten().map(|entry| entry.path()) {
        leftover::stop(&data)?;
    }
    fs::remove_dir_all(home).with_context(|| format!("cannot remove {}", home.display()))
}

fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}
