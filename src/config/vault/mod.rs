//! `${vault:MOUNT/PATH#FIELD}`: secrets of Vault, or of what speaks its HTTP
//! API (OpenBao), from the key-value store in both of its versions.
//!
//! Each path is read once for each load of a pipeline file, before any string
//! is expanded, so two fields of one path are of one version. Where the server
//! is and who asks is taken from the variables that Vault's own tools read
//! ([`server`]); what goes over the wire stands in [`client`], and what an
//! answer means in [`answer`], which asks nobody.
//!
//! | bound | |
//! |---|---|
//! | a request, with its connection | 5 s |
//! | all of a load | 10 s |
//! | an answer | 64 KiB |

mod answer;
mod client;
mod error;
mod server;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use self::error::VaultError;
use self::{answer::Fields, server::Server};
use super::interpolate::Env;

/// Before a reference, in the place of a variable's name.
pub(super) const VAULT: &str = "vault:";

/// One field of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference<'a> {
    path: &'a str,
    field: &'a str,
}

impl<'a> Reference<'a> {
    /// Reads `MOUNT/PATH#FIELD`.
    fn parse(written: &'a str) -> Result<Self, VaultError> {
        let refuse = |reason| Err(VaultError::Written { written: written.to_owned(), reason });
        let Some((path, field)) = written.split_once('#') else {
            return refuse("it names no field");
        };
        if field.is_empty() {
            return refuse("it names no field");
        }
        if field.contains(":-") {
            return refuse("a secret has no default");
        }
        if path.split('/').count() < 2 {
            return refuse("it names no path below the mount");
        }
        let odd = |part: &str| matches!(part, "" | "." | "..") || part.contains(char::is_control);
        if path.split('/').any(odd) {
            return refuse("its path has an empty part, or one that is no name");
        }
        Ok(Self { path, field })
    }
}

/// What the paths of a file hold.
#[derive(Default)]
pub(super) struct Secrets(BTreeMap<String, Result<Fields, VaultError>>);

impl Secrets {
    /// Reads every path that `written` refers to, on a thread of its own: the
    /// caller may be within a runtime. Blocks, for 10 s at most.
    pub(super) fn fetch<'a>(written: impl Iterator<Item = &'a str>, env: Env<'_>) -> Self {
        let paths: BTreeSet<String> = written
            .filter_map(|written| Reference::parse(written).ok())
            .map(|reference| reference.path.to_owned())
            .collect();
        if paths.is_empty() {
            return Self::default();
        }
        let all = |error: VaultError| paths.iter().map(|path| (path.clone(), Err(error.clone()))).collect();
        Self(match Server::from(env) {
            Ok(server) => client::read_all(server, &paths).unwrap_or_else(all),
            Err(error) => all(error),
        })
    }

    /// The text of a field that [`Secrets::fetch`] was told of.
    pub(super) fn get(&self, written: &str) -> Result<String, VaultError> {
        let reference = Reference::parse(written)?;
        match self.0.get(reference.path) {
            Some(Ok(fields)) => fields.text(reference.path, reference.field),
            Some(Err(error)) => Err(error.clone()),
            None => Err(VaultError::Written { written: written.to_owned(), reason: "it was not asked for" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_a_mount_a_path_and_a_field() {
        let parsed = Reference::parse("secret/team/app#password").unwrap();
        assert_eq!(parsed, Reference { path: "secret/team/app", field: "password" });
        assert_eq!(Reference::parse("kv/a#b#c").unwrap().field, "b#c");
        for (written, reason) in [
            ("secret/app", "no field"),
            ("secret/app#", "no field"),
            ("secret#x", "below the mount"),
            ("secret//app#x", "empty part"),
            ("/secret/app#x", "empty part"),
            ("secret/../app#x", "no name"),
            ("secret/app#x:-y", "no default"),
        ] {
            let error = Reference::parse(written).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("MOUNT/PATH#FIELD"), "{error}");
        }
    }

    #[test]
    fn nobody_is_asked_for_nothing() {
        let asked = |name: &str| -> Option<String> { panic!("{name} was looked up") };
        assert!(Secrets::fetch(["no reference"].into_iter(), &asked).0.is_empty());
    }

    #[test]
    fn without_a_server_every_path_says_so() {
        let secrets = Secrets::fetch(["a/b#c", "a/b#d", "a/e#f"].into_iter(), &|_| None);
        assert_eq!(secrets.0.len(), 2);
        assert!(secrets.get("a/e#f").unwrap_err().to_string().contains("VAULT_ADDR"));
    }
}
