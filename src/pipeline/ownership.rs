//! A stream belongs to one data directory, whose log gives its offsets.
//!
//! Two data directories that use one stream name in one store would give the
//! same offsets to different frames. So each directory has an identity, drawn
//! once, and a store that several daemons share remembers whose each stream
//! is. Two daemons on copies of one directory are kept apart by the lease's
//! epoch instead: the later one fences the earlier.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};

use crate::{
    durable,
    store::{Store, StreamOwner},
};

/// The file with the identity, in the data directory.
const FILE: &str = "identity";

/// Has `stream` belong to the data directory `data_dir`, or says whose it is.
/// `take_over`: takes it from its owner, who is fenced.
pub async fn claim(data_dir: &Path, store: &Store, stream: &str, take_over: bool, now_ms: i64) -> Result<()> {
    let owner = StreamOwner { identity: identity(data_dir)?, host: host(), since_ms: now_ms };
    let known = store.claim_stream(stream, &owner, take_over).await?;
    ensure!(
        known.identity == owner.identity,
        "the stream `{stream}` of this store belongs to another data directory, of a daemon on {} since {}; \
         offsets would mean different records. Give this pipeline's `stream` another name; if that data \
         directory is gone for good, start once with --take-over",
        known.host,
        jiff::Timestamp::from_millisecond(known.since_ms).unwrap_or_default(),
    );
    Ok(())
}

/// The identity of the data directory `data_dir`, drawn at the first call.
///
/// # Errors
/// If it cannot be read or written.
pub fn identity(data_dir: &Path) -> Result<String> {
    let path = data_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() == 32 => return Ok(text.trim().to_owned()),
        Ok(_) => anyhow::bail!("{} does not hold an identity; put the file back", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
    let identity = format!("{:032x}", rand::random::<u128>());
    durable::publish(&path, |file| writeln!(file, "{identity}"))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(identity)
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or("unknown".into(), |name| name.trim().to_owned())
}
