//! Objects against rows, both ways.
//!
//! Two listings in the same order are merged, so memory does not grow with
//! them. They are not of one moment: what seems wrong is looked at again by
//! itself before it is said.

use std::{cmp::Ordering, pin::pin};

use futures::{Stream, StreamExt};
use object_store::{ObjectMeta, ObjectStoreExt, path::Path as Location};
use serde::{Deserialize, Serialize};

use super::{ArtifactError, Artifacts, digest_of};
use crate::store::ArtifactRow;

/// Of each kind of finding this many are named; all are counted.
const NAMED: usize = 1_000;

/// Findings of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings<T> {
    /// How many there are.
    pub count: u64,
    /// The first 1,000 of them.
    pub first: Vec<T>,
}

impl<T> Default for Findings<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> Findings<T> {
    fn add(&mut self, finding: T) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(finding);
        }
    }
}

/// A row without its object, or with one of another size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// SHA-256 that the object should have.
    pub digest: String,
    /// `segment` and the like.
    pub kind: String,
    /// For people.
    pub name: String,
    /// Where it should be.
    pub location: String,
    /// Size that it should have.
    pub bytes: u64,
    /// Size that it has; none if it is not there.
    pub found_bytes: Option<u64>,
}

/// An object that no row names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Where it lies.
    pub location: String,
    /// Its size.
    pub bytes: u64,
    /// When it was put, in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Whether its name is one that an artifact can have. What somebody else
    /// put there is told, and never removed.
    pub is_ours: bool,
}

/// A sealed segment in the catalog whose artifact has no row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unregistered {
    /// Its stream.
    pub stream: String,
    /// Its first offset.
    pub base_offset: u64,
    /// SHA-256 of the object it should have become.
    pub object_digest: String,
}

/// What comparing found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Rows of the registry.
    pub rows: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of the objects.
    pub bytes: u64,
    /// Objects without a row that are younger than the grace period.
    pub young: u64,
    /// Rows without object.
    pub missing: Findings<Broken>,
    /// Rows whose object has another size.
    pub resized: Findings<Broken>,
    /// Objects without row that are older than the grace period.
    pub orphans: Findings<Orphan>,
    /// Sealed segments in the catalog without artifact.
    pub segments: Findings<Unregistered>,
}

impl CheckReport {
    /// Whether every row has its object and every object its row.
    pub fn is_fine(&self) -> bool {
        self.is_whole() && self.orphans.count == 0
    }

    /// Whether nothing is missing; orphans cost space only.
    pub fn is_whole(&self) -> bool {
        self.missing.count == 0 && self.resized.count == 0 && self.segments.count == 0
    }

    /// Whether this looks like the objects of another registry: most are
    /// unknown to this one. Then none should be removed.
    pub fn is_strange(&self) -> bool {
        2 * self.orphans.count > self.objects
    }
}

/// What stands next in one listing or both.
enum Pair {
    Row(ArtifactRow),
    Object(ObjectMeta),
    Both(ArtifactRow, ObjectMeta),
}

impl Artifacts {
    /// Compares objects with rows. An object without a row that is younger
    /// than `grace_ms` at `now_ms` may be getting its row just now.
    pub async fn check(&self, grace_ms: i64, now_ms: i64) -> Result<CheckReport, ArtifactError> {
        let mut report = CheckReport::default();
        let mut pairs = pin!(merged(self.rows_in_order(), self.in_order()));
        while let Some(pair) = pairs.next().await {
            match pair? {
                Pair::Both(row, object) => {
                    report.seen(&object);
                    report.rows += 1;
                    if row.bytes != object.size {
                        report.resized.add(broken(row, Some(object.size)));
                    }
                }
                Pair::Row(row) => {
                    report.rows += 1;
                    if self.is_missing(&row.location).await? {
                        report.missing.add(broken(row, None));
                    }
                }
                Pair::Object(object) => {
                    report.seen(&object);
                    self.without_row(object, now_ms - grace_ms, &mut report).await?;
                }
            }
        }
        for segment in self.registry.segments_without_artifact().await? {
            report.segments.add(Unregistered {
                stream: segment.stream,
                base_offset: segment.base_offset,
                object_digest: segment.object_digest,
            });
        }
        Ok(report)
    }

    async fn without_row(
        &self,
        object: ObjectMeta,
        before_ms: i64,
        report: &mut CheckReport,
    ) -> Result<(), ArtifactError> {
        let modified_ms = object.last_modified.timestamp_millis();
        if modified_ms > before_ms {
            report.young += 1;
            return Ok(());
        }
        let location = object.location.to_string();
        if !self.is_registered(&location).await? {
            let is_ours = digest_of(&location).is_some();
            report.orphans.add(Orphan { location, bytes: object.size, modified_ms, is_ours });
        }
        Ok(())
    }

    async fn is_missing(&self, location: &str) -> Result<bool, ArtifactError> {
        match self.objects.head(&Location::from(location)).await {
            Ok(_) => Ok(false),
            Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(source) => Err(self.failed(location, source)),
        }
    }

    async fn is_registered(&self, location: &str) -> Result<bool, ArtifactError> {
        // The rows behind a name that is one letter shorter begin with it.
        let before = location.get(..location.len().saturating_sub(1)).unwrap_or("");
        let rows = self.registry.artifacts_after(before, 2).await?;
        Ok(rows.iter().any(|row| row.location == location))
    }

    /// Removes an orphan, unless it has got a row since it was found. Returns
    /// whether it was removed.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<bool, ArtifactError> {
        if !orphan.is_ours || self.is_registered(&orphan.location).await? {
            return Ok(false);
        }
        let location = Location::from(orphan.location.as_str());
        match self.objects.delete(&location).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.failed(&orphan.location, source)),
        }
    }

    /// Gives up uploads that were begun long ago. Returns how many.
    pub async fn abandon_stale_uploads(&self, now_ms: i64) -> Result<usize, ArtifactError> {
        match &self.bucket {
            Some(bucket) => bucket.abandon_stale(now_ms).await,
            None => Ok(0),
        }
    }
}

impl CheckReport {
    fn seen(&mut self, object: &ObjectMeta) {
        self.objects += 1;
        self.bytes += object.size;
    }
}

fn broken(row: ArtifactRow, found_bytes: Option<u64>) -> Broken {
    let ArtifactRow { digest, kind, name, bytes, location, .. } = row;
    Broken { digest, kind, name, location, bytes, found_bytes }
}

/// Both listings as one, matched by location.
fn merged<'a>(
    rows: impl Stream<Item = Result<ArtifactRow, ArtifactError>> + Send + 'a,
    objects: impl Stream<Item = Result<ObjectMeta, ArtifactError>> + Send + 'a,
) -> impl Stream<Item = Result<Pair, ArtifactError>> + Send + 'a {
    let state = (Box::pin(rows.peekable()), Box::pin(objects.peekable()), None::<String>);
    futures::stream::try_unfold(state, async |(mut rows, mut objects, mut last)| {
        let order = match (rows.as_mut().peek().await, objects.as_mut().peek().await) {
            (None, None) => return Ok(None),
            (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
            (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
            (Some(Ok(row)), Some(Ok(object))) => row.location.as_str().cmp(object.location.as_ref()),
        };
        let row = if order.is_le() { rows.next().await.transpose()? } else { None };
        let object = if order.is_ge() { objects.next().await.transpose()? } else { None };
        if let Some(object) = &object {
            let second = object.location.to_string();
            if let Some(first) = last.replace(second.clone()).filter(|first| *first > second) {
                return Err(ArtifactError::Unsorted { first, second });
            }
        }
        let pair = match (row, object) {
            (Some(row), Some(object)) => Pair::Both(row, object),
            (Some(row), None) => Pair::Row(row),
            (None, Some(object)) => Pair::Object(object),
            (None, None) => return Ok(None),
        };
        Ok(Some((pair, (rows, objects, last))))
    })
}
