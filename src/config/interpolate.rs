//! `${VAR}` in the strings of a pipeline file.
//!
//! | written | means |
//! |---|---|
//! | `${VAR}` | the variable's value; an unset variable is an error |
//! | `${VAR:-text}` | the value, or `text` if the variable is unset or empty, as in a shell |
//! | `${file:/run/secrets/key}` | what the file holds, without the line's end: how secrets are mounted |
//! | `${vault:secret/app#password}` | a field of a secret in Vault ([`super::vault`]) |
//! | `$$` | one `$` |
//!
//! Any other `$` stands for itself, so that a regular expression needs no
//! escapes. Values are put in after the file has been parsed and are not
//! looked at again: nothing in the environment can change the file's syntax.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::vault::{Secrets, VAULT, VaultError};

/// Looks a variable up.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A string with its variables put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expanded {
    pub(super) text: String,
    /// Whether nothing of the text stood in the file itself: then it may
    /// become a number or a boolean where one is wanted.
    pub(super) from_environment: bool,
    /// Whether some of it is from a file or from Vault: then no message shows
    /// it.
    pub(super) is_secret: bool,
}

/// Why a string could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExpandError {
    #[error("the environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`")]
    Unset { name: String },
    #[error("`{written}` has no closing `}}`; write `$$` for a plain dollar sign")]
    Unclosed { written: String },
    #[error("`{name}` is not a variable name; write `$$` for a plain dollar sign")]
    Name { name: String },
    #[error("the file `{path}` cannot be used: {reason}; name a file with one short text in UTF-8")]
    File { path: String, reason: String },
    #[error("{error}")]
    Vault { written: String, error: VaultError },
}

impl ExpandError {
    /// How the file writes the part at fault, so that it can be pointed at.
    pub(super) fn written(&self) -> String {
        match self {
            Self::Unset { name } | Self::Name { name } => format!("${{{name}"),
            Self::Unclosed { written } => written.clone(),
            Self::File { path, .. } => format!("${{{FILE}{path}"),
            Self::Vault { written, .. } => format!("${{{VAULT}{written}"),
        }
    }
}

/// Every string of a file that holds a `$`, expanded, by the byte at which it
/// starts.
pub(super) type Expansions = BTreeMap<usize, Result<Expanded, ExpandError>>;

/// Expands every string in `table`, to any depth. What is in Vault is fetched
/// first: blocks, for 10 s at most.
pub(super) fn expand_all(table: &DeTable<'_>, env: Env<'_>) -> Expansions {
    let mut strings: Vec<(usize, &str)> = Vec::new();
    let mut left: Vec<&Spanned<DeValue<'_>>> = table.values().collect();
    while let Some(value) = left.pop() {
        match value.get_ref() {
            DeValue::String(raw) if raw.contains('$') => strings.push((value.span().start, raw)),
            DeValue::Table(table) => left.extend(table.values()),
            DeValue::Array(array) => left.extend(array.iter()),
            _ => {}
        }
    }
    let secrets = Secrets::fetch(strings.iter().flat_map(|(_, raw)| in_vault(raw)), env);
    strings.into_iter().map(|(start, raw)| (start, expand(raw, env, &secrets))).collect()
}

/// A part of a string as it is written.
enum Part<'a> {
    Text(&'a str),
    /// `$` or `$$`, which stand for a dollar sign.
    Dollar,
    /// What stands between the braces.
    Variable(&'a str),
    /// Braces that are not closed, without the first.
    Unclosed(&'a str),
}

/// The parts of `raw`.
fn parts(raw: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('$') {
        parts.push(Part::Text(before));
        let Some(after) = after.strip_prefix('{') else {
            parts.push(Part::Dollar);
            rest = after.strip_prefix('$').unwrap_or(after);
            continue;
        };
        let Some((body, after)) = after.split_once('}') else {
            parts.push(Part::Unclosed(after));
            return parts;
        };
        parts.push(Part::Variable(body));
        rest = after;
    }
    parts.push(Part::Text(rest));
    parts
}

/// What `raw` refers to in Vault.
fn in_vault(raw: &str) -> Vec<&str> {
    let parts = parts(raw).into_iter();
    parts
        .filter_map(|part| if let Part::Variable(body) = part { body.strip_prefix(VAULT) } else { None })
        .collect()
}

/// Puts the variables into `raw`.
fn expand(raw: &str, env: Env<'_>, secrets: &Secrets) -> Result<Expanded, ExpandError> {
    let mut text = String::with_capacity(raw.len());
    let mut from_environment = raw.starts_with("${");
    let mut is_secret = false;
    for part in parts(raw) {
        match part {
            Part::Variable(body) => {
                text.push_str(&variable(body, env, secrets)?);
                is_secret |= body.starts_with(FILE) || body.starts_with(VAULT);
                continue;
            }
            Part::Text("") => continue,
            Part::Text(part) => text.push_str(part),
            Part::Dollar => text.push('$'),
            Part::Unclosed(after) => {
                return Err(ExpandError::Unclosed { written: format!("${{{after}") });
            }
        }
        from_environment = false;
    }
    Ok(Expanded { text, from_environment, is_secret })
}

/// Before the path of a file, in the place of a variable's name.
const FILE: &str = "file:";
/// Longer is no secret, nor anything else that a setting could be.
const LONGEST_FILE: u64 = 64 << 10;

/// What the file at `path` holds, without the end of its line.
pub(super) fn short_file(path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST_FILE + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LONGEST_FILE {
        true => Err(io::Error::other("it has more than 64 KiB")),
        false => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
    }
}

/// The value of what stands between the braces.
fn variable(body: &str, env: Env<'_>, secrets: &Secrets) -> Result<String, ExpandError> {
    if let Some(path) = body.strip_prefix(FILE) {
        return short_file(path)
            .map_err(|error| ExpandError::File { path: path.to_owned(), reason: error.to_string() });
    }
    if let Some(written) = body.strip_prefix(VAULT) {
        return secrets
            .get(written)
            .map_err(|error| ExpandError::Vault { written: written.to_owned(), error });
    }
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };
    if !is_name(name) {
        return Err(ExpandError::Name { name: name.to_owned() });
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(ExpandError::Unset { name: name.to_owned() }),
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_home(raw: &str) -> Result<Expanded, ExpandError> {
        let env = |name: &str| match name {
            "HOME" => Some("/home/x".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("${HOME}".to_owned()),
            _ => None,
        };
        expand(raw, &env, &Secrets::default())
    }

    fn text(raw: &str) -> String {
        with_home(raw).unwrap().text
    }

    #[test]
    fn a_file_gives_what_it_holds_without_the_end_of_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let written = format!("${{file:{}}}", path.display());
        let reason = |raw: &str| with_home(raw).unwrap_err().to_string();
        assert!(reason(&written).contains("No such file"), "{}", reason(&written));
        std::fs::write(&path, "open sesame\n").unwrap();
        assert_eq!(text(&written), "open sesame");
        std::fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert!(reason(&written).contains("UTF-8"));
        std::fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(reason(&written).contains("64 KiB"));
    }

    #[test]
    fn variables_and_defaults_are_put_in() {
        assert_eq!(text("${HOME}/data"), "/home/x/data");
        assert_eq!(text("${HOME:-/tmp}"), "/home/x");
        assert_eq!(text("${GONE:-/tmp}:${HOME}"), "/tmp:/home/x");
        assert_eq!(text("${EMPTY:-full}"), "full");
        assert_eq!(text("<${EMPTY}>"), "<>");
        assert_eq!(text("${GONE:-}"), "");
    }

    #[test]
    fn dollars_that_name_nothing_stay() {
        assert_eq!(text("$${HOME} costs $5$"), "${HOME} costs $5$");
        assert_eq!(text(r"^\d+$"), r"^\d+$");
    }

    #[test]
    fn only_references_are_looked_for_in_vault() {
        assert_eq!(in_vault("a ${vault:a/b#c}${HOME}${vault:d/e#f}"), ["a/b#c", "d/e#f"]);
        assert!(in_vault("$${vault:a/b#c} ${vault:a/b#c").is_empty());
        let error = with_home("${vault:a/b}").unwrap_err();
        assert_eq!(error.written(), "${vault:a/b");
        assert!(error.to_string().contains("names no field"), "{error}");
    }

    #[test]
    fn a_value_is_not_expanded_again() {
        assert_eq!(text("${TRICK}"), "${HOME}");
    }

    #[test]
    fn only_text_that_came_from_outside_may_become_a_number() {
        for (raw, whole) in [
            ("${HOME}", true),
            ("${GONE:-2}", true),
            ("${GONE:-2}${HOME}", true),
            ("${GONE:-2} ", false),
            ("1${GONE:-2}", false),
            ("$$", false),
            ("2", false),
            ("", false),
        ] {
            assert_eq!(with_home(raw).unwrap().from_environment, whole, "{raw}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_says_why() {
        assert_eq!(with_home("a ${GONE}"), Err(ExpandError::Unset { name: "GONE".into() }));
        assert_eq!(with_home("${GONE"), Err(ExpandError::Unclosed { written: "${GONE".into() }));
        assert_eq!(with_home("${1A}"), Err(ExpandError::Name { name: "1A".into() }));
        let message = with_home("${GONE}").unwrap_err().to_string();
        assert!(message.contains("write `${GONE:-default}`"), "{message}");
    }
}
