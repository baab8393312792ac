//! A pack again, without some of its documents.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    sync::Arc,
};

use super::{Meta, PackError, Packer, Pending, Slot, format};
use crate::{artifact::hex, record::RecordRef, store::ArtifactRow};

/// What is left of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Without {
    /// The pack's name as it was.
    pub name: String,
    /// SHA-256 of its object as it was, in hex.
    pub before: String,
    /// Documents that are left out now.
    pub removed: u64,
    /// SHA-256 of the object now; none if no document is left.
    pub after: Option<String>,
}

impl Packer {
    /// Writes every registered pack of the stream again that holds documents
    /// which `goes` picks, and takes the old ones out of the registry. A pack
    /// that was written and not registered is forgotten: it can be made again.
    ///
    /// # Errors
    /// See [`PackError`]. What was done stays done.
    pub async fn leave_out(
        &self,
        goes: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        now_ms: i64,
    ) -> Result<Vec<Without>, PackError> {
        let slot = Slot::take(&self.folder)
            .map_err(|source| self.unwritten(source))?
            .ok_or_else(|| PackError::Busy { folder: self.folder.clone() })?;
        slot.clear().map_err(|source| self.unwritten(source))?;
        let (goes, mut done) = (Arc::new(goes), Vec::new());
        for row in self.artifacts.list().await?.into_iter().filter(|row| row.kind == super::KIND) {
            let Ok(meta) = serde_json::from_str::<Meta>(&row.meta) else { continue };
            if meta.stream == self.log.stream() {
                done.extend(self.leave_out_of(&slot, row, meta, goes.clone(), now_ms).await?);
            }
        }
        Ok(done)
    }

    async fn leave_out_of(
        &self,
        slot: &Slot,
        row: ArtifactRow,
        meta: Meta,
        goes: Arc<impl Fn(&[u8]) -> bool + Send + Sync + 'static>,
        now_ms: i64,
    ) -> Result<Option<Without>, PackError> {
        let whole = self.folder.join("whole.msgpack.zst.tmp");
        self.artifacts.fetch(&row, &whole).await?;
        let (from, to, level, default_tenant) =
            (whole.clone(), slot.path(), self.level, self.defaults.tenant.clone());
        let write = move || -> io::Result<_> {
            let mut tenants = HashSet::new();
            let kept = |payload: &[u8]| {
                let keep = !goes(payload);
                if let (true, Ok(record)) = (keep, RecordRef::parse(payload)) {
                    tenants.insert(record.tenant.unwrap_or(&default_tenant).to_owned());
                }
                keep
            };
            let (_, written) = format::rewrite(File::open(from)?, File::create(to)?, level, kept)?;
            Ok((written, tenants.len() as u64))
        };
        let rewritten = self.cpu.run(write).await;
        fs::remove_file(&whole).map_err(|source| self.unwritten(source))?;
        let (written, tenants) = rewritten.map_err(|source| self.unwritten(source))?;
        let removed = meta.documents - written.documents;
        let digest = hex(&written.object_digest);
        if removed == 0 {
            slot.clear().map_err(|source| self.unwritten(source))?;
            return Ok(None);
        }
        let after = if written.documents > 0 {
            let meta = Meta {
                documents: written.documents,
                tenants,
                plain_bytes: written.plain_bytes,
                content_digest: hex(&written.content_digest),
                ..meta
            };
            let pending = Pending { name: meta.name(&digest), digest: digest.clone(), meta };
            slot.publish(&pending).map_err(|source| self.unwritten(source))?;
            self.keep(slot, &pending, now_ms).await?;
            Some(digest)
        } else {
            slot.clear().map_err(|source| self.unwritten(source))?;
            None
        };
        self.store.doom(std::slice::from_ref(&row.digest), None, now_ms).await?;
        Ok(Some(Without { name: row.name, before: row.digest, removed, after }))
    }
}
