//! Whose keys sign requests to S3.
//!
//! In this order: a credentials file or profile that the settings name, the
//! environment, `~/.aws/credentials` if it is there, and then what the machine
//! or container is given by its provider (the client asks for that itself).
//! A file is read again when it has changed, so keys can be rotated under a
//! running daemon.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use futures::future::BoxFuture;
use object_store::{CredentialProvider, aws::AwsCredential};

use super::settings::Settings;
use crate::secret::Secret;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error(
        "the credentials file {path} cannot be read: {source}; mend `credentials_file` in [artifacts], or leave it and `profile` out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not one of keys. What it says there is not repeated.
    #[error("{path}, line {line}: {message}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What would be right.
        message: &'static str,
    },
    /// The profile or one of its keys is missing.
    #[error(
        "{path} has no {what} for the profile [{profile}]; add it, or name another `profile` in [artifacts]"
    )]
    Missing {
        /// The file.
        path: String,
        /// The profile.
        profile: String,
        /// What it lacks.
        what: &'static str,
    },
    /// Half a pair of keys.
    #[error("{set} is set in the environment and {missing} is not; set both, or neither")]
    Half {
        /// The variable that is there.
        set: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Its public half.
    pub id: String,
    /// Its other half.
    pub secret: Secret,
    /// Belongs to keys that were lent for a while.
    pub token: Option<Secret>,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The environment.
    Environment(Keys),
    /// A section of a file.
    File(KeyFile),
    /// Whatever this machine or container was given.
    Machine,
}

/// A section of a file with keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
    profile: String,
}

const ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";

/// Decides where keys come from. Reads nothing but `variable`s of the
/// environment and asks only whether a file `is_there`.
pub fn source(
    settings: &Settings,
    variable: impl Fn(&str) -> Option<String>,
    is_there: impl Fn(&Path) -> bool,
) -> Result<Source, CredentialsError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let at_home = || variable("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
    let shared = || variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(at_home);
    let profile = || {
        let named = settings.profile.clone().or_else(|| variable("AWS_PROFILE"));
        named.unwrap_or_else(|| "default".into())
    };
    let named = settings.credentials_file.as_ref().map(PathBuf::from);
    if named.is_some() || settings.profile.is_some() {
        let path = named.or_else(shared).unwrap_or_else(|| ".aws/credentials".into());
        return Ok(Source::File(KeyFile { path, profile: profile() }));
    }
    match (variable(ID), variable(SECRET)) {
        (Some(id), Some(secret)) => {
            let token = variable("AWS_SESSION_TOKEN").map(Secret::from);
            Ok(Source::Environment(Keys { id, secret: secret.into(), token }))
        }
        (Some(_), None) => Err(CredentialsError::Half { set: ID, missing: SECRET }),
        (None, Some(_)) => Err(CredentialsError::Half { set: SECRET, missing: ID }),
        (None, None) => Ok(shared()
            .filter(|path| is_there(path))
            .map_or(Source::Machine, |path| Source::File(KeyFile { path, profile: profile() }))),
    }
}

impl KeyFile {
    /// Reads the keys.
    pub fn read(&self) -> Result<Keys, CredentialsError> {
        let path = self.path.display().to_string();
        let text = std::fs::read_to_string(&self.path)
            .map_err(|source| CredentialsError::File { path: path.clone(), source })?;
        parse(&text, &self.profile, &path)
    }
}

/// The keys of `[profile]` in the text of a credentials file.
fn parse(text: &str, profile: &str, path: &str) -> Result<Keys, CredentialsError> {
    let (mut within, mut found) = (false, false);
    let (mut id, mut secret, mut token) = (None, None, None);
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            continue;
        }
        let wrong = |message| CredentialsError::Line { path: path.to_owned(), line, message };
        if let Some(section) = text.strip_prefix('[') {
            let section = section.strip_suffix(']').ok_or_else(|| wrong("a section begins with `[name]`"))?;
            within = section.trim() == profile;
            found |= within;
            continue;
        }
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("expected `key = value`"))?;
        let slot = match key.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        if within && slot.replace(value.trim().to_owned()).is_some() {
            return Err(wrong("this key is in its section twice"));
        }
    }
    let missing =
        |what| CredentialsError::Missing { path: path.to_owned(), profile: profile.to_owned(), what };
    if !found {
        return Err(missing("section"));
    }
    let given =
        |value: Option<String>, what| value.filter(|value| !value.is_empty()).ok_or_else(|| missing(what));
    Ok(Keys {
        id: given(id, "aws_access_key_id")?,
        secret: given(secret, "aws_secret_access_key")?.into(),
        token: token.filter(|token| !token.is_empty()).map(Secret::from),
    })
}

/// Gives a client the keys of a file as they are at the moment.
pub struct FromFile {
    file: KeyFile,
    read: Mutex<(Option<SystemTime>, Arc<AwsCredential>)>,
}

impl FromFile {
    /// Reads `file` for the first time.
    pub fn open(file: KeyFile) -> Result<Self, CredentialsError> {
        let (changed, keys) = (file.changed(), file.read()?);
        Ok(Self { file, read: Mutex::new((changed, Arc::new(credential(&keys)))) })
    }
}

impl KeyFile {
    fn changed(&self) -> Option<SystemTime> {
        std::fs::metadata(&self.path).and_then(|file| file.modified()).ok()
    }
}

impl fmt::Debug for FromFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFile").field("file", &self.file).finish_non_exhaustive()
    }
}

impl FromFile {
    fn now(&self) -> Arc<AwsCredential> {
        let changed = self.file.changed();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if changed != read.0 {
            // Whoever writes it may be half done; the next request looks again.
            match self.file.read() {
                Ok(keys) => *read = (changed, Arc::new(credential(&keys))),
                Err(error) => tracing::warn!(%error, "the keys read before are used on"),
            }
        }
        read.1.clone()
    }
}

impl CredentialProvider for FromFile {
    type Credential = AwsCredential;

    // What `async fn` in this trait stands for.
    fn get_credential<'s, 'f>(&'s self) -> BoxFuture<'f, object_store::Result<Arc<AwsCredential>>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(std::future::ready(Ok(self.now())))
    }
}

/// The keys as the client takes them.
pub fn credential(keys: &Keys) -> AwsCredential {
    AwsCredential {
        key_id: keys.id.clone(),
        secret_key: keys.secret.reveal().to_owned(),
        token: keys.token.as_ref().map(|token| token.reveal().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AKID\naws_secret_access_key=s3cr=t\nregion = x\n\n[other]\naws_access_key_id = OTHER\naws_secret_access_key = hidden\naws_session_token = lent\n";

    fn from(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_profile_gives_its_own_keys() {
        let keys = parse(FILE, "default", "f").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.reveal(), keys.token), ("AKID", "s3cr=t", None));
        let keys = parse(FILE, "other", "f").unwrap();
        assert_eq!((keys.id.as_str(), keys.token.unwrap().reveal()), ("OTHER", "lent"));
    }

    #[test]
    fn what_a_file_lacks_is_named_and_what_it_says_is_not_repeated() {
        let of = |text: &str, profile: &str| parse(text, profile, "f").unwrap_err().to_string();
        assert!(of(FILE, "third").contains("no section for the profile [third]"));
        assert!(of("[default]\naws_access_key_id = A\n", "default").contains("no aws_secret_access_key"));
        let error = of("[default]\nhunter2\n", "default");
        assert!(error.starts_with("f, line 2") && !error.contains("hunter2"), "{error}");
        assert!(of("[default\n", "default").contains("line 1"));
        let twice = "[default]\naws_secret_access_key = a\naws_secret_access_key = b\n";
        assert!(of(twice, "default").contains("twice"));
    }

    #[test]
    fn settings_go_before_the_environment_and_that_before_the_file_at_home() {
        let environment = from(&[(ID, "AKID"), (SECRET, "hidden"), ("HOME", "/home/me")]);
        let plain = Settings::default();
        let found = source(&plain, &environment, |_| true).unwrap();
        assert!(matches!(&found, Source::Environment(keys) if keys.id == "AKID"));
        assert!(!format!("{found:?}").contains("hidden"));
        let profile = Settings { profile: Some("p".into()), ..Settings::default() };
        let wanted = KeyFile { path: "/home/me/.aws/credentials".into(), profile: "p".into() };
        assert_eq!(source(&profile, &environment, |_| false).unwrap(), Source::File(wanted));
        let home = from(&[("HOME", "/home/me"), ("AWS_PROFILE", "q")]);
        let wanted = KeyFile { path: "/home/me/.aws/credentials".into(), profile: "q".into() };
        assert_eq!(source(&plain, &home, |_| true).unwrap(), Source::File(wanted));
        assert_eq!(source(&plain, &home, |_| false).unwrap(), Source::Machine);
    }

    #[test]
    fn half_a_pair_is_refused() {
        let error = source(&Settings::default(), from(&[(ID, "AKID")]), |_| false).unwrap_err();
        assert!(error.to_string().contains(SECRET));
    }

    #[tokio::test]
    async fn keys_that_change_under_way_are_used_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        let provider = FromFile::open(KeyFile { path: path.clone(), profile: "default".into() }).unwrap();
        assert_eq!(provider.get_credential().await.unwrap().key_id, "AKID");
        let write = |text: &str, seconds: u64| {
            std::fs::write(&path, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        write(&FILE.replace("AKID", "NEXT"), 1);
        assert_eq!(provider.get_credential().await.unwrap().key_id, "NEXT");
        write("[default]\n", 2);
        assert_eq!(provider.get_credential().await.unwrap().key_id, "NEXT");
        assert!(!format!("{provider:?}").contains("s3cr"));
    }
}
