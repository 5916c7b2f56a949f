//! Where Postgres' server programs come from: the machine, else Maven Central.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::account::Account;
use crate::{cache, maven};

/// Older ones lack options that we start the server with.
const OLDEST_MAJOR: u32 = 14;
/// Version of the Zonky project's binaries, fetched where the machine has none.
const DOWNLOAD_VERSION: &str = "17.10.0";
/// What needs none of that.
const ALTERNATIVE: &str = "set POSTGRES_HOSTNAME to a server of yours";

/// Directories whose `NUMBER/bin`, `pgsql-NUMBER/bin` or `postgresql@NUMBER/bin` may hold a server:
/// Debian, Red Hat, Homebrew on either processor, Postgres.app.
const PARENTS: [&str; 5] = [
    "/usr/lib/postgresql",
    "/usr",
    "/opt/homebrew/opt",
    "/usr/local/opt",
    "/Applications/Postgres.app/Contents/Versions",
];

/// A directory that holds `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) dir: PathBuf,
    pub(crate) major: u32,
}

impl Binaries {
    /// The machine's own, first of PATH, else its newest; fetched where there are none, or where
    /// `ONHAND_POSTGRES=download` asks for it.
    pub(crate) fn find(account: &Account, report: &dyn Fn(&str)) -> Result<Self> {
        if env::var_os("ONHAND_POSTGRES").is_none_or(|wish| wish != "download")
            && let Some(found) = on_machine(account)
        {
            return Ok(found);
        }
        let dir = download(account, report)?.join("bin");
        let major = major_of(&dir);
        let major = major.with_context(|| format!("{} does not run here", dir.display()))?;
        Ok(Self { dir, major })
    }

    /// The directory that holds `psql`, which the fetched binaries lack.
    pub(crate) fn psql_dir(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut dirs = std::iter::once(self.dir.clone()).chain(env::split_paths(&path));
        dirs.find(|dir| dir.join("psql").is_file())
    }
}

fn on_machine(account: &Account) -> Option<Binaries> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Links are followed, because initdb looks for its share directory beside itself.
    let on_path = env::split_paths(&path)
        .filter_map(|dir| Some(fs::canonicalize(dir.join("postgres")).ok()?.parent()?.to_owned()));
    let usable = |dir: PathBuf| {
        let here = dir.join("initdb").is_file() && account.may_enter(&dir);
        let major = here.then(|| major_of(&dir)).flatten().filter(|&m| m >= OLDEST_MAJOR)?;
        Some(Binaries { dir, major })
    };
    on_path.into_iter().find_map(usable).or_else(|| {
        let installed = PARENTS.iter().flat_map(fs::read_dir).flatten().flatten();
        let installed = installed.map(|entry| entry.path()).filter(|p| is_versioned(p));
        installed.filter_map(|p| usable(p.join("bin"))).max_by_key(|b| b.major)
    })
}

fn is_versioned(dir: &Path) -> bool {
    let name = dir.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let number = name.strip_prefix("pgsql-").or(name.strip_prefix("postgresql@"));
    number.unwrap_or(name).bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// From `postgres (PostgreSQL) 15.18 (Debian ...)`.
fn major_of(bin: &Path) -> Option<u32> {
    let out = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let line = String::from_utf8_lossy(&out.stdout);
    line.split_whitespace().nth(2)?.split(['.', 'b', 'r']).next()?.parse().ok()
}

/// The Zonky project's binaries: initdb, pg_ctl and postgres, some 15 MB. They are kept where the
/// server's user can reach them; for root that is not below its home directory.
fn download(account: &Account, report: &dyn Fn(&str)) -> Result<PathBuf> {
    let mut cache = cache::user_dir()?;
    if account.is_other_user {
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        if !account.may_enter(&fs::canonicalize(&cache)?) {
            cache = PathBuf::from("/var/cache/onhand");
        }
    }
    let platform = platform()?;
    cache::entry(&cache, &format!("postgres-{DOWNLOAD_VERSION}-{platform}"), |into| {
        report("fetching Postgres' server programs (15 MB, once)");
        let artifact = format!("embedded-postgres-binaries-{platform}");
        maven::run(
            &[
                "dependency:copy".into(),
                format!("-Dartifact=io.zonky.test.postgres:{artifact}:{DOWNLOAD_VERSION}:jar"),
                format!("-DoutputDirectory={}", into.display()),
            ],
            "Postgres' server programs",
            &format!("install Postgres, or {ALTERNATIVE}"),
        )?;
        let jar = into.join(format!("{artifact}-{DOWNLOAD_VERSION}.jar"));
        unpack(&jar, into)
    })
}

fn platform() -> Result<String> {
    let system = match env::consts::OS {
        "linux" => "linux",
        "macos" => "darwin",
        other => bail!("there is no Postgres to fetch for {other}: install it, or {ALTERNATIVE}"),
    };
    let processor = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        other => bail!("there is no Postgres to fetch for {other}: install it, or {ALTERNATIVE}"),
    };
    let musl = if Path::new("/etc/alpine-release").exists() { "-alpine" } else { "" };
    Ok(format!("{system}-{processor}{musl}"))
}

/// The jar is a zip that holds one `postgres-*.txz`.
fn unpack(jar: &Path, into: &Path) -> Result<()> {
    let unzipped = tool("unzip", Command::new("unzip").args(["-q", "-o"]).arg(jar).current_dir(into));
    if unzipped.is_err() {
        tool("unzip", Command::new("jar").arg("xf").arg(jar).current_dir(into))?;
    }
    let archive = fs::read_dir(into)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("txz")))
        .with_context(|| format!("{} holds no .txz", jar.display()))?;
    let mut tar = Command::new("tar");
    tool("xz-utils", tar.arg("xJf").arg(&archive).current_dir(into))?;
    for used_up in [archive, jar.to_owned(), into.join("META-INF")] {
        let _ = fs::remove_file(&used_up).or_else(|_| fs::remove_dir_all(&used_up));
    }
    Ok(())
}

fn tool(package: &str, command: &mut Command) -> Result<()> {
    let missing = || format!("{package} is needed to unpack Postgres: apt-get install {package}, or {ALTERNATIVE}");
    let output = command.output().with_context(missing)?;
    ensure!(output.status.success(), "{}\n{}", missing(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
