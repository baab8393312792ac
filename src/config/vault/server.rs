//! Where Vault is and who asks, from the variables that its own tools read.
//!
//! | variable | |
//! |---|---|
//! | `VAULT_ADDR` | `https://host:8200`; http only to this machine. Required: there is no default |
//! | `VAULT_TOKEN` | the token |
//! | `VAULT_TOKEN_FILE` | the file that holds it, where `VAULT_TOKEN` is not set |
//! | `VAULT_NAMESPACE` | the namespace, where the server has them |
//! | `VAULT_CACERT` | a PEM file with the authorities to trust, instead of this machine's |

use reqwest::Url;

use super::error::VaultError;
use crate::{
    config::interpolate::{Env, short_file},
    http_client,
    secret::Secret,
};

/// What is needed to ask.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Without query or fragment, user or password.
    pub(super) address: Url,
    pub(super) token: Secret,
    pub(super) namespace: Option<String>,
    /// Authorities in PEM.
    pub(super) authorities: Option<String>,
}

impl Server {
    pub(super) fn from(env: Env<'_>) -> Result<Self, VaultError> {
        let set = |name| env(name).filter(|value| !value.is_empty());
        let address = set("VAULT_ADDR").ok_or_else(|| VaultError::Setting {
            name: "VAULT_ADDR",
            reason: "is not set; set it to Vault's address, such as https://vault.example:8200".to_owned(),
        })?;
        Ok(Self {
            address: checked(&address)?,
            token: token(&set)?,
            namespace: set("VAULT_NAMESPACE"),
            authorities: set("VAULT_CACERT").map(|path| read("VAULT_CACERT", &path)).transpose()?,
        })
    }

    /// Its address, for messages.
    pub(super) fn name(&self) -> String {
        self.address.as_str().trim_end_matches('/').to_owned()
    }

    /// The URL of `/v1/` and these parts.
    pub(super) fn at<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.address.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(parts);
        }
        url
    }
}

fn token(set: &impl Fn(&'static str) -> Option<String>) -> Result<Secret, VaultError> {
    let (name, token) = match (set("VAULT_TOKEN"), set("VAULT_TOKEN_FILE")) {
        (Some(token), _) => ("VAULT_TOKEN", token),
        (None, Some(path)) => ("VAULT_TOKEN_FILE", read("VAULT_TOKEN_FILE", &path)?),
        (None, None) => {
            let reason = "is not set, nor VAULT_TOKEN_FILE; set one of them".to_owned();
            return Err(VaultError::Setting { name: "VAULT_TOKEN", reason });
        }
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(VaultError::Setting { name, reason: "holds no token".to_owned() });
    }
    Ok(Secret::from(token.to_owned()))
}

fn read(name: &'static str, path: &str) -> Result<String, VaultError> {
    short_file(path).map_err(|error| VaultError::Setting {
        name,
        reason: format!("names a file that cannot be used: {path}: {error}"),
    })
}

/// Refuses what would send the token in the clear. What was written is not
/// repeated: it may hold a password.
fn checked(address: &str) -> Result<Url, VaultError> {
    let refuse = |reason: &str| Err(VaultError::Setting { name: "VAULT_ADDR", reason: reason.to_owned() });
    let Ok(url) = address.parse::<Url>() else {
        return refuse("is no URL; write it as https://vault.example:8200");
    };
    let safe = url.scheme() == "https" || url.scheme() == "http" && http_client::stays_here(&url);
    if !safe {
        return refuse("must be https; http only to this machine: the token would go in the clear");
    }
    let bare = url.username().is_empty() && url.password().is_none();
    if !bare || url.query().is_some() || url.fragment().is_some() {
        return refuse("has a user, a query or a fragment; leave them out");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(set: &[(&str, &str)]) -> Result<Server, String> {
        let env = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Server::from(&env).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_goes_over_tls_or_nowhere() {
        for fine in ["https://v.example:8200", "http://127.0.0.1:8200", "http://[::1]:1", "http://localhost"]
        {
            server(&[("VAULT_ADDR", fine), ("VAULT_TOKEN", "t")]).unwrap();
        }
        for (address, reason) in [
            ("http://v.example:8200", "in the clear"),
            ("http://localhost.example", "in the clear"),
            ("unix:///run/vault.sock", "must be https"),
            ("vault.example", "no URL"),
            ("https://me:hunter2@v.example", "leave them out"),
            ("https://v.example/?x=hunter2", "leave them out"),
        ] {
            let error = server(&[("VAULT_ADDR", address), ("VAULT_TOKEN", "t")]).unwrap_err();
            assert!(error.contains("VAULT_ADDR") && error.contains(reason), "{address}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_token_is_a_variable_or_in_a_file_and_shown_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "from-file\n").unwrap();
        let file = file.to_str().unwrap();
        let address = ("VAULT_ADDR", "https://v.example/base/");
        let both = server(&[address, ("VAULT_TOKEN", "from-env"), ("VAULT_TOKEN_FILE", file)]).unwrap();
        assert_eq!(both.token.reveal(), "from-env");
        let one = server(&[address, ("VAULT_TOKEN", ""), ("VAULT_TOKEN_FILE", file)]).unwrap();
        assert_eq!(one.token.reveal(), "from-file");
        assert!(!format!("{one:?}").contains("from-file"), "{one:?}");
        assert_eq!(one.at(["kv", "a b"]).as_str(), "https://v.example/base/v1/kv/a%20b");
        assert!(server(&[address]).unwrap_err().contains("VAULT_TOKEN_FILE"));
        assert!(server(&[address, ("VAULT_TOKEN_FILE", "/no/such")]).unwrap_err().contains("/no/such"));
        let odd = server(&[address, ("VAULT_TOKEN", "two words")]).unwrap_err();
        assert!(odd.contains("holds no token") && !odd.contains("two"), "{odd}");
    }
}
