//! `thalweg doctor --connect`: whether the servers that a pipeline names can
//! be worked with. One file each.

mod database;
mod objects;
mod redis;

use super::Check;
use crate::config::Pipeline;

/// Asks every server that `pipeline` names.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    let mut checks = database::check(pipeline).await;
    checks.extend(objects::check(pipeline).await);
    checks.extend(redis::check(pipeline).await);
    checks
}
