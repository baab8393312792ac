//! Whether an object store can be worked with, found out by doing so.

use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as Location};

use super::{ArtifactError, Artifacts};

/// What a probe found; that it was possible at all means that the bucket is
/// there, the keys are right, and objects can be listed, put, read and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where objects lie.
    pub place: String,
    /// Whether a second put of the same name under `If-None-Match: *` was
    /// refused.
    pub is_conditional: bool,
    /// How far the server's clock is ahead of the time given, in milliseconds,
    /// to a second; none if it tells no time.
    pub ahead_ms: Option<i64>,
}

const PROBE: &[u8] = b"written by `thalweg doctor`, which removes it again\n";

impl Artifacts {
    /// Lists, then puts a small object named after `now_ms`, reads it and
    /// removes it.
    pub async fn probe(&self, now_ms: i64) -> Result<Probe, ArtifactError> {
        self.reach().await?;
        let name = format!("probe/{now_ms}-{}", std::process::id());
        let location = Location::from(name.as_str());
        let put = async || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.objects.put_opts(&location, PutPayload::from_static(PROBE), options).await
        };
        let failed = |source| self.failed(&name, source);
        put().await.map_err(failed)?;
        let again = put().await;
        let read = match self.objects.get(&location).await {
            Ok(object) => object.bytes().await,
            Err(source) => Err(source),
        };
        // Before anything else is looked at: the probe does not stay.
        self.objects.delete(&location).await.map_err(failed)?;
        let is_conditional = match again {
            Ok(_) => false,
            Err(object_store::Error::AlreadyExists { .. }) => true,
            Err(source) => return Err(failed(source)),
        };
        let found = read.map_err(failed)?;
        if found != PROBE {
            let (sent, found) = (PROBE.len() as u64, found.len() as u64);
            return Err(ArtifactError::Cut { location: name.clone(), sent, found });
        }
        let (place, ahead_ms) = match &self.bucket {
            Some(bucket) => (bucket.place.to_string(), bucket.time_ms().await.map(|time| time - now_ms)),
            None => ("a local folder".to_owned(), None),
        };
        Ok(Probe { place, is_conditional, ahead_ms })
    }
}
