//! Objects and rows in the order of their locations, without holding all of
//! them.

use std::collections::VecDeque;

use futures::{Stream, StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{ObjectMeta, path::Path as Location};

use super::{ArtifactError, Artifacts};
use crate::store::{ArtifactRow, Store};

/// Rows read at a time.
const PAGE: u32 = 5_000;

/// A name in a folder, as it is sorted: a folder's ends with a slash, so that
/// what is in it stands where a flat list of all objects has it.
enum Entry {
    Object(ObjectMeta),
    Folder(Location),
}

impl Entry {
    fn name(&self) -> String {
        match self {
            Self::Object(object) => object.location.to_string(),
            Self::Folder(folder) => format!("{folder}/"),
        }
    }
}

impl Artifacts {
    /// Every object, in the order of the bytes of its location.
    pub(super) fn in_order(&self) -> BoxStream<'_, Result<ObjectMeta, ArtifactError>> {
        let failed = |source| self.failed("", source);
        if self.bucket.is_some() {
            return self.objects.list(None).map_err(failed).boxed();
        }
        // A file system lists as it likes; one folder at a time is sorted.
        let start = vec![Entry::Folder(Location::default())];
        stream::try_unfold(start, async |mut waiting| {
            while let Some(entry) = waiting.pop() {
                match entry {
                    Entry::Object(object) => return Ok(Some((object, waiting))),
                    Entry::Folder(folder) => waiting.extend(self.folder(&folder).await?),
                }
            }
            Ok(None)
        })
        .boxed()
    }

    /// What is in `folder`, the last first.
    async fn folder(&self, folder: &Location) -> Result<Vec<Entry>, ArtifactError> {
        let found = self.objects.list_with_delimiter(Some(folder)).await;
        let found = found.map_err(|source| self.failed(folder.as_ref(), source))?;
        let objects = found.objects.into_iter().map(Entry::Object);
        let mut entries: Vec<_> =
            objects.chain(found.common_prefixes.into_iter().map(Entry::Folder)).collect();
        entries.sort_by_cached_key(|entry| std::cmp::Reverse(entry.name()));
        Ok(entries)
    }

    /// Every row, in the order of the bytes of its location.
    pub(super) fn rows_in_order(&self) -> impl Stream<Item = Result<ArtifactRow, ArtifactError>> + Send + '_ {
        stream::try_unfold(Rows::default(), async |mut rows| {
            let row = rows.next(&self.registry).await?;
            Ok(row.map(|row| (row, rows)))
        })
    }
}

#[derive(Default)]
struct Rows {
    page: VecDeque<ArtifactRow>,
    last: Option<String>,
    done: bool,
}

impl Rows {
    async fn next(&mut self, registry: &Store) -> Result<Option<ArtifactRow>, ArtifactError> {
        if self.page.is_empty() && !self.done {
            self.page = registry.artifacts_after(self.last.as_deref().unwrap_or(""), PAGE).await?.into();
            self.done = self.page.len() < PAGE as usize;
            self.last = self.page.back().map(|row| row.location.clone());
        }
        Ok(self.page.pop_front())
    }
}
