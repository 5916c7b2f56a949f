//! Downloads, shared by all checkouts of a user.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/onhand`, else `~/.cache/onhand`.
pub(crate) fn user_dir() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("onhand"))
        .context("neither HOME nor XDG_CACHE_HOME is set, so downloads cannot be kept")
}

/// The directory `name` in `cache`, filled by `fill` if it does not exist yet. It appears complete
/// or not at all, even if the process is killed meanwhile. Of two processes at once, one fetches and
/// the other waits.
pub(crate) fn entry(cache: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = cache.join(name);
    if done.is_dir() {
        return Ok(done);
    }
    let writing = || format!("cannot write to the cache {}", cache.display());
    fs::create_dir_all(cache).with_context(writing)?;
    // Released by the kernel however we end; close-on-exec, so no child keeps it.
    let lock = File::create(cache.join(format!("{name}.lock"))).with_context(writing)?;
    lock.lock().with_context(writing)?;
    if done.is_dir() {
        return Ok(done);
    }
    let part = cache.join(format!("{name}.part"));
    if part.exists() {
        fs::remove_dir_all(&part).with_context(writing)?;
    }
    fs::create_dir(&part).with_context(writing)?;
    fill(&part)?;
    fs::rename(&part, &done).with_context(writing)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_entry_is_fetched_again_completely() {
        let dir = tempfile::tempdir().unwrap();
        let interrupted = entry(dir.path(), "thing", |to| {
            fs::write(to.join("half"), "")?;
            anyhow::bail!("interrupted")
        });
        assert!(interrupted.is_err());
        let whole = entry(dir.path(), "thing", |to| Ok(fs::write(to.join("whole"), "")?)).unwrap();
        let names: Vec<_> = fs::read_dir(whole).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["whole"]);
        entry(dir.path(), "thing", |_| anyhow::bail!("fetched twice")).unwrap();
    }
}
