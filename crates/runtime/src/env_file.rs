//! `.env` in the working directory, in the form that Compose reads: settings for what the
//! environment leaves open.
//!
//! A line is `NAME=value`, blank, or a comment that begins with `#`. A value ends before ` #`, unless
//! it is in quotes: `'...'` is taken literally, in `"..."` a backslash escapes. Compose would replace
//! `$NAME`; here a `$` outside of single quotes is an error, so that no value means two things.

use std::{
    env, fmt, fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
};

const NAME: &str = ".env";

/// What a `.env` says.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvFile {
    variables: Vec<(String, String)>,
}

impl fmt::Debug for EnvFile {
    /// Names only: there are passwords among the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.iter().map(|(name, _)| name)).finish()
    }
}

/// Why a `.env` was not read. It quotes no value: there are passwords among them.
#[derive(Debug)]
pub enum EnvFileError {
    /// The file is there and can't be read.
    Unreadable(io::Error),
    /// A line, counted from 1, and what is wrong with it.
    Malformed(usize, &'static str),
}

impl fmt::Display for EnvFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnvFileError::Unreadable(error) => write!(f, "{NAME}: {error}"),
            EnvFileError::Malformed(line, why) => write!(f, "{NAME}, line {line}: {why}"),
        }
    }
}

impl std::error::Error for EnvFileError {}

/// The variables that were set from the file.
static APPLIED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

impl EnvFile {
    /// The `.env` of the working directory; an empty one when there is none.
    pub fn read() -> Result<EnvFile, EnvFileError> {
        EnvFile::read_from(Path::new(NAME))
    }

    /// Reads a file of this form; a missing one is empty.
    pub fn read_from(path: &Path) -> Result<EnvFile, EnvFileError> {
        match fs::read_to_string(path) {
            Ok(text) => EnvFile::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(EnvFile { variables: Vec::new() }),
            Err(error) => Err(EnvFileError::Unreadable(error)),
        }
    }

    fn parse(text: &str) -> Result<EnvFile, EnvFileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut variables = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                variables.push(variable(line).map_err(|why| EnvFileError::Malformed(at + 1, why))?);
            }
        }
        Ok(EnvFile { variables })
    }

    /// The variables, in the order of the file.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// Sets those of its variables that the environment does not set and that `wanted` chooses. To be
    /// called before there are threads.
    pub fn apply(&self, wanted: impl Fn(&str) -> bool) {
        let mut applied = APPLIED.lock().unwrap_or_else(PoisonError::into_inner);
        // the last line of a name counts
        for (name, value) in self.variables.iter().rev() {
            if wanted(name) && env::var_os(name).is_none() {
                // SAFETY: no other thread reads the environment yet.
                unsafe { env::set_var(name, value) };
                applied.push((name.clone(), value.clone()));
            }
        }
    }
}

/// What was set from the file: variables and their values.
pub fn applied() -> Vec<(String, String)> {
    APPLIED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Logs that settings come from the file.
pub fn log() {
    match applied().len() {
        0 => {}
        variables => tracing::info!(file = NAME, variables, "settings from {NAME}"),
    }
}

/// A name and its value. The error says what is wrong.
fn variable(line: &str) -> Result<(String, String), &'static str> {
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=').ok_or("expected NAME=value")?;
    let name = name.trim_end();
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if name.is_empty() || !is_name(name) || name.starts_with(|first: char| first.is_ascii_digit()) {
        return Err("expected NAME=value; a name has letters, digits and _ only");
    }
    Ok((name.to_owned(), unquoted(value.trim_start())?))
}

fn unquoted(text: &str) -> Result<String, &'static str> {
    let Some(quote) = text.chars().next().filter(|first| ['"', '\''].contains(first)) else {
        let comment = text.match_indices('#').find(|(at, _)| text[..*at].ends_with(char::is_whitespace) || *at == 0);
        let value = text[..comment.map_or(text.len(), |(at, _)| at)].trim_end();
        return if value.contains('$') { Err(DOLLAR) } else { Ok(value.to_owned()) };
    };
    let mut value = String::new();
    let mut rest = text[1..].chars();
    loop {
        match rest.next().ok_or("the quote is not closed on this line")? {
            end if end == quote => break,
            '\\' if quote == '"' => match rest.next() {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(escaped @ ('"' | '\\' | '$')) => value.push(escaped),
                _ => return Err("only \\n, \\r, \\t, \\\", \\\\ and \\$ are escapes"),
            },
            '$' if quote == '"' => return Err(DOLLAR),
            other => value.push(other),
        }
    }
    let after = rest.as_str();
    if !after.trim().is_empty() && !after.trim_start().starts_with('#') {
        return Err("there is more after the closing quote");
    }
    Ok(value)
}

const DOLLAR: &str = "variables ($) are not replaced here; write the value in single quotes to have a $ in it";

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Result<String, &'static str> {
        variable(line).map(|(_, value)| value)
    }

    #[test]
    fn values_are_read_as_compose_reads_them() {
        for (line, expected) in [
            ("A=b", "b"),
            ("export A=b", "b"),
            ("A = b c ", "b c"),
            ("A=", ""),
            ("A= # nothing", ""),
            ("A=b # why", "b"),
            ("A=b#c", "b#c"),
            ("A=b=c", "b=c"),
            ("A='b # $c' # why", "b # $c"),
            (r#"A="b \"c\" \$d\n""#, "b \"c\" $d\n"),
            (r"A='b\n'", r"b\n"),
        ] {
            assert_eq!(value(line).as_deref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn a_malformed_line_is_named_and_not_quoted() {
        let error = |text: &str| EnvFile::parse(text).expect_err(text).to_string();
        assert_eq!(error("# fine\nA=b\nsecret"), ".env, line 3: expected NAME=value");
        assert_eq!(error("A B=c"), ".env, line 1: expected NAME=value; a name has letters, digits and _ only");
        assert_eq!(error("A='b"), ".env, line 1: the quote is not closed on this line");
        assert_eq!(error("A='b' c"), ".env, line 1: there is more after the closing quote");
        for line in ["A=b$c", "A=\"${b}\""] {
            assert_eq!(error(line), format!(".env, line 1: {DOLLAR}"));
        }
    }
}
