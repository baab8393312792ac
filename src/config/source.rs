//! Sources: where frames come from.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::listen::Listen;
use crate::{secret::Secret, tls, units::ByteSize};

/// One `[[source]]` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// Frames over TCP, each batch acknowledged.
    Tcp(Tcp),
    /// Frames over a Unix socket, each batch acknowledged.
    Unix(Unix),
    /// Frames or JSON Lines from standard input, once.
    Stdin(Stdin),
    /// Frames or JSON Lines from a file or a folder.
    File(File),
    /// Frames, JSON or JSON Lines by `POST` to the address of `[http]`.
    Http(Http),
    /// Events from Fluent Bit, Fluentd and what else speaks their protocol.
    Forward(Forward),
}

/// Settings of a source of type `tcp`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Tcp {
    /// Name of the source, unique in the file.
    pub name: String,
    /// Address and port to listen on.
    pub listen: Listen,
    /// Whether other machines may connect, which they do without TLS: it ends
    /// at a proxy in front, or the network is trusted.
    #[serde(default)]
    pub cleartext: bool,
}

/// Settings of a source of type `unix`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Unix {
    /// Name of the source, unique in the file.
    #[serde(default = "Unix::default_name")]
    pub name: String,
    /// Path of the socket, relative to the working directory.
    pub path: PathBuf,
}

/// Settings of a source of type `stdin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Stdin {
    /// Name of the source, unique in the file.
    pub name: String,
    /// What arrives.
    pub format: Format,
}

/// Settings of a source of type `file`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct File {
    /// Name of the source, unique in the file.
    #[serde(default = "File::default_name")]
    pub name: String,
    /// A file, or a folder whose files are read in the order of their names;
    /// relative to the working directory.
    pub path: PathBuf,
    /// What the files hold.
    #[serde(default)]
    pub format: Format,
    /// Whether to go on looking for new files and new lines.
    #[serde(default)]
    pub watch: bool,
}

/// Settings of a source of type `http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Http {
    /// Name of the source, unique in the file.
    pub name: String,
}

/// Settings of a source of type `forward`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Forward {
    /// Name of the source, unique in the file.
    pub name: String,
    /// Address and port to listen on. Other machines may connect only where
    /// `shared_key` and `tls` are both set.
    pub listen: Listen,
    /// Most bytes of one message, such as a chunk of Fluentd, on the wire.
    pub max_message_bytes: ByteSize,
    /// Fields that may hold the text, the preferred one first.
    pub text_keys: Vec<String>,
    /// Key that clients must have too; without it everybody is let in.
    pub shared_key: Option<Secret>,
    /// The tenant whose events come this way: those that name none are theirs,
    /// those that name another are refused. Left out: any tenant's.
    pub tenant: Option<String>,
    /// The name that clients are told; it must not be the name of any of them.
    pub self_hostname: String,
    /// TLS, where connections are to be encrypted.
    pub tls: Option<tls::Settings>,
}

/// How records are written one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Told from the first bytes.
    #[default]
    Auto,
    /// Length-prefixed MessagePack.
    Frames,
    /// One JSON object a line.
    Jsonl,
}

impl Default for Tcp {
    fn default() -> Self {
        Self { name: "tcp".to_owned(), listen: Listen::local(7410), cleartext: false }
    }
}

impl Default for Stdin {
    fn default() -> Self {
        Self { name: "stdin".to_owned(), format: Format::Auto }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { name: "http".to_owned() }
    }
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            name: "forward".to_owned(),
            listen: Listen::local(24224),
            max_message_bytes: ByteSize::mib(64),
            text_keys: ["text", "log", "message", "msg", "MESSAGE"].map(str::to_owned).to_vec(),
            shared_key: None,
            tenant: None,
            self_hostname: "thalweg".to_owned(),
            tls: None,
        }
    }
}

impl Unix {
    fn default_name() -> String {
        "unix".to_owned()
    }
}

impl File {
    fn default_name() -> String {
        "file".to_owned()
    }
}

impl Source {
    /// The source's name, unique in its pipeline.
    pub fn name(&self) -> &str {
        match self {
            Self::Tcp(source) => &source.name,
            Self::Unix(source) => &source.name,
            Self::Stdin(source) => &source.name,
            Self::File(source) => &source.name,
            Self::Http(source) => &source.name,
            Self::Forward(source) => &source.name,
        }
    }

    /// The source's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Unix(_) => "unix",
            Self::Stdin(_) => "stdin",
            Self::File(_) => "file",
            Self::Http(_) => "http",
            Self::Forward(_) => "forward",
        }
    }
}
