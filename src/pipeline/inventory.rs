//! Inventory: objects and registry are compared, and what is found is shown.

use std::{sync::Arc, time::Duration};

use super::progress::Progress;
use crate::{
    artifact::{ArtifactError, Artifacts, CheckReport},
    clock::Clock,
    metrics,
};

/// Compares the objects of one registry with its rows.
pub struct Inventory {
    /// Objects and rows.
    pub artifacts: Artifacts,
    /// An object without a row is an orphan once it is older.
    pub grace: Duration,
    /// Where what is wrong is shown.
    pub progress: Arc<Progress>,
    /// What time it is.
    pub clock: Clock,
}

impl Inventory {
    /// Compares. Mends nothing but uploads that were given up; what is found
    /// is shown, and said.
    ///
    /// # Errors
    /// If the object store or the registry cannot be asked.
    pub async fn take(&self) -> Result<CheckReport, ArtifactError> {
        let report = self.compare().await?;
        self.show(&report);
        Ok(report)
    }

    async fn compare(&self) -> Result<CheckReport, ArtifactError> {
        let now_ms = (self.clock)();
        let abandoned = self.artifacts.abandon_stale_uploads(now_ms).await?;
        if abandoned > 0 {
            tracing::info!(abandoned, "uploads that were begun long ago were given up");
        }
        let grace_ms = i64::try_from(self.grace.as_millis()).unwrap_or(i64::MAX);
        let report = self.artifacts.check(grace_ms, now_ms).await?;
        metrics::artifacts_checked(counts(&report), now_ms);
        Ok(report)
    }

    fn show(&self, report: &CheckReport) {
        let [(_, missing), (_, resized), (_, orphans), (_, segments)] = counts(report);
        if report.is_whole() {
            self.progress.well("artifacts");
        } else {
            let what = format!(
                "{missing} artifacts have no object, {resized} an object of another size, {segments} sealed segments \
                 no artifact; `thalweg artifacts check` names them"
            );
            self.progress.trouble("artifacts", what);
        }
        if !report.is_fine() {
            let see = "objects and registry differ; see `thalweg artifacts check`";
            tracing::warn!(missing, resized, orphans, segments, "{see}");
        }
    }
}

/// Findings by kind.
type Found = [(&'static str, u64); 4];

fn counts(report: &CheckReport) -> Found {
    [
        ("missing", report.missing.count),
        ("resized", report.resized.count),
        ("orphan", report.orphans.count),
        ("segment", report.segments.count),
    ]
}
