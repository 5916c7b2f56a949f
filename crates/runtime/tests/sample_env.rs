//! sample.env and the code say the same: each setting that the sources name is listed there, with a
//! comment and the default that the code has, and nothing else is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use runtime::env_file::EnvFile;

/// Variables that the sources name and that are no settings of ours.
const NOT_OURS: [&str; 5] = ["CARGO_PKG_VERSION", "JAVA_HOME", "LC_ALL", "NO_COLOR", "XDG_CACHE_HOME"];
const COMPOSE_FILES: [&str; 2] = ["docker-compose.yml", "docker-compose.kafka.yml"];

#[test]
fn sample_env_lists_the_settings_of_the_sources_and_of_the_compose_files_and_no_others() {
    let mut named: BTreeSet<_> = sources().iter().flat_map(|source| names(source)).map(|(name, ..)| name).collect();
    for name in NOT_OURS {
        assert!(named.remove(name), "no source names {name} any more: it need not be in NOT_OURS");
    }
    for file in COMPOSE_FILES {
        named.extend(interpolated(&read(&root().join(file))));
    }
    // read by docker-compose itself
    named.insert("COMPOSE_IGNORE_ORPHANS".to_owned());
    assert_eq!(sample().into_keys().collect::<BTreeSet<_>>(), named, "left: sample.env, right: the sources");
}

#[test]
fn sample_env_tells_the_defaults_that_the_code_has() {
    let sample = sample();
    let mut told = BTreeMap::new();
    let mut coded = BTreeMap::new();
    for (name, before, after) in sources().iter().flat_map(|source| names(source)) {
        let Some(default) = default(before, after) else { continue };
        let comment = sample.get(&name).map(String::as_str).unwrap_or_default();
        told.insert(name.clone(), comment.rsplit_once("Default: ").map(|(_, default)| default.to_owned()));
        coded.insert(name, Some(default));
    }
    assert!(coded.len() > 10, "the sources no longer look as this test expects: {coded:?}");
    assert_eq!(told, coded, "left: the comments of sample.env, right: the sources");
}

#[test]
fn every_setting_of_sample_env_is_explained_on_the_line_above_it() {
    let silent: Vec<_> = sample().into_iter().filter(|(_, comment)| comment.is_empty()).collect();
    assert_eq!(silent, []);
}

#[test]
fn sample_env_copied_to_env_is_read_as_it_is_written() {
    let file = EnvFile::read_from(&root().join("sample.env")).expect("well-formed");
    let read: BTreeMap<_, _> = file.variables().iter().cloned().collect();
    let text = read_text();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let written = lines.map(|line| line.split_once('=').expect("a setting"));
    assert_eq!(read, written.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
}

fn read_text() -> String {
    read(&root().join("sample.env"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is in the `src` of every crate.
fn sources() -> Vec<String> {
    let crates = fs::read_dir(root().join("crates")).expect("the crates");
    let mut sources = Vec::new();
    let mut directories: Vec<_> = crates.map(|entry| entry.expect("a crate").path().join("src")).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("a source").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(read(&path));
            }
        }
    }
    sources
}

/// The strings that look like a variable's name (`"LOG_LEVEL"`), with what is before and after each.
fn names(source: &str) -> impl Iterator<Item = (String, &str, &str)> {
    source.match_indices('"').filter_map(move |(at, _)| {
        let (name, after) = source[at + 1..].split_once('"')?;
        is_name(name).then(|| (name.to_owned(), &source[..at], after))
    })
}

fn is_name(text: &str) -> bool {
    let mut words = text.split('_');
    let upper = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    };
    text.contains('_') && words.all(upper)
}

/// The default of `env.text_or("NAME", "default")`, `env.parse_or("NAME", 6, ...)` and an event
/// type's `topic: ("NAME", "default")`.
fn default(before: &str, after: &str) -> Option<String> {
    let before = before.trim_end();
    if !before.ends_with("_or(") && !before.ends_with("topic: (") {
        return None;
    }
    let after = after.strip_prefix(',')?.trim_start();
    match after.strip_prefix('"') {
        Some(text) => Some(text.split_once('"')?.0.to_owned()),
        None => Some(after.split_once([',', ')'])?.0.replace('_', "")),
    }
}

/// The names in `${NAME}` and `${NAME:-...}`.
fn interpolated(compose: &str) -> BTreeSet<String> {
    let starts = compose.split("${").skip(1);
    starts.filter_map(|start| Some(start.split([':', '}', '-', '?']).next()?.to_owned())).collect()
}

/// The settings in sample.env, set or commented out, each with the comment on the line above.
fn sample() -> BTreeMap<String, String> {
    let text = read_text();
    let mut settings = BTreeMap::new();
    let mut comment = "";
    for line in text.lines() {
        let setting = line.trim_start_matches('#').split_once('=').filter(|(name, _)| is_name(name));
        match setting {
            Some((name, _)) => {
                let twice = settings.insert(name.to_owned(), comment.to_owned());
                assert_eq!(twice, None, "{name} is there twice");
                comment = "";
            }
            None => comment = line.strip_prefix("# ").filter(|text| !text.starts_with("---")).unwrap_or_default(),
        }
    }
    settings
}
