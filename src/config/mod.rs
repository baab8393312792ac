//! Pipeline files: one TOML file says what a pipeline is.
//!
//! A file is parsed, compared with its schema ([`Pipeline::schema`]), read
//! into structs and validated; each step reports everything it finds, with
//! line and column, and the next one runs only on a file that passed. Past
//! [`load`] every setting is typed, complete and believed.
//!
//! The environment is an argument: nothing here looks at the process. What a
//! file names in Vault is fetched on the way, so loading may block for 10 s;
//! within a runtime, do it on a blocking thread.

mod difference;
mod interpolate;
mod listen;
mod outline;
mod pipeline;
mod problem;
mod read;
mod retention;
mod schema;
mod sections;
mod sessions;
mod source;
mod suggest;
mod validate;
mod vault;

pub mod check;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::{
    difference::Difference,
    interpolate::Env,
    listen::Listen,
    pipeline::Pipeline,
    problem::{ConfigErrors, Problem},
    retention::{Pins, Retention},
    sections::{Http, Search, Shutdown},
    sessions::Sessions,
    source::{File, Format, Forward, Http as HttpSource, Source, Stdin, Tcp, Unix},
};
use self::{
    interpolate::{Expansions, expand_all},
    outline::{Outline, Places},
    pipeline::{Written, written_schema},
    problem::Text,
    read::read,
    schema::Node,
};
pub use crate::secret::Secret;

/// Reads and checks the pipeline file at `path`, with `env` as its
/// environment.
///
/// # Errors
///
/// [`ConfigErrors::Unreadable`] if the file cannot be read as UTF-8 text,
/// [`ConfigErrors::Refused`] with every problem found otherwise.
pub fn load(path: &Path, env: Env<'_>) -> Result<Pipeline, ConfigErrors> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file, env),
        Err(source) => Err(ConfigErrors::Unreadable { file, source }),
    }
}

/// Checks the pipeline file `text`, called `file_name` in messages, with
/// `env` as its environment.
///
/// # Errors
///
/// [`ConfigErrors::Refused`] with every problem found, in the order of the
/// file.
pub fn parse(text: &str, file_name: &str, env: Env<'_>) -> Result<Pipeline, ConfigErrors> {
    pipeline(Text(text), env).map_err(|mut problems| {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        ConfigErrors::Refused { file: file_name.to_owned(), problems }
    })
}

/// More syntax errors than this are one mistake seen many times.
const SYNTAX_ERRORS_SHOWN: usize = 10;

fn pipeline(text: Text<'_>, env: Env<'_>) -> Result<Pipeline, Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text.0);
    if !errors.is_empty() {
        let problem = |error: toml::de::Error| {
            text.problem(&error.span().unwrap_or(text.0.len()..text.0.len()), "", error.message())
        };
        return Err(errors.into_iter().take(SYNTAX_ERRORS_SHOWN).map(problem).collect());
    }
    let root = root.into_inner();
    let expansions = expand_all(&root, env);
    checked(text, root, &expansions).map_err(|problems| without_secrets(problems, &expansions))
}

/// The file as a pipeline, its variables known.
fn checked<'t>(
    text: Text<'t>,
    root: DeTable<'t>,
    expansions: &'t Expansions,
) -> Result<Pipeline, Vec<Problem>> {
    let (written, places) = structured(text, root, expansions)?;
    let pipeline = Pipeline::from(written);
    let refused = validate::validate(&pipeline);
    if refused.is_empty() {
        return Ok(pipeline);
    }
    Err(refused
        .into_iter()
        .map(|error| text.problem(&places.find(&error.key), &error.key, error.message))
        .collect())
}

/// Shorter texts are parts of words that a message has anyway.
const SHORTEST_SECRET: usize = 4;

/// A secret may stand by mistake where a setting is shown, and messages quote
/// what they refuse.
fn without_secrets(mut problems: Vec<Problem>, expansions: &Expansions) -> Vec<Problem> {
    let secrets = expansions.values().flatten().filter(|expanded| expanded.is_secret);
    for secret in secrets.map(|expanded| expanded.text.trim()).filter(|text| text.len() >= SHORTEST_SECRET) {
        for problem in &mut problems {
            problem.message = problem.message.replace(secret, "(secret)");
        }
    }
    problems
}

/// The file as structs, and where its keys stand.
fn structured<'t>(
    text: Text<'t>,
    mut root: DeTable<'t>,
    expansions: &'t Expansions,
) -> Result<(Written, Places), Vec<Problem>> {
    let schema = written_schema();
    let mut outline = Outline::new(text, expansions);
    outline.table(&mut root, Node::root(&schema), "", &(0..0));
    let Outline { places, mut problems, .. } = outline;
    // Tables told apart by their `type` would lose their places on the way
    // through serde, so each source is read by itself.
    let sources = match root.remove("source").map(Spanned::into_inner) {
        Some(DeValue::Array(sources)) => sources,
        _ => toml::de::DeArray::new(),
    };
    let sources: Vec<_> = sources
        .into_iter()
        .enumerate()
        .filter_map(|(i, source)| read_source(text, source, &format!("source[{i}]"), &mut problems))
        .collect();
    let written: Option<Written> = read(text, root, "", &(0..0), &mut problems);
    match written {
        Some(mut written) if problems.is_empty() => {
            written.source = sources;
            Ok((written, places))
        }
        _ => Err(problems),
    }
}

fn read_source(
    text: Text<'_>,
    source: Spanned<DeValue<'_>>,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<Source> {
    let own = source.span();
    let DeValue::Table(mut table) = source.into_inner() else {
        return None;
    };
    let kind = table.remove("type")?.into_inner();
    match kind.as_str()? {
        "tcp" => read(text, table, path, &own, problems).map(Source::Tcp),
        "unix" => read(text, table, path, &own, problems).map(Source::Unix),
        "stdin" => read(text, table, path, &own, problems).map(Source::Stdin),
        "file" => read(text, table, path, &own, problems).map(Source::File),
        "http" => read(text, table, path, &own, problems).map(Source::Http),
        "forward" => read(text, table, path, &own, problems).map(Source::Forward),
        _ => None,
    }
}
