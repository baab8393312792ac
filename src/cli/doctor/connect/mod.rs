//! `thalweg doctor --connect`: whether the servers that a pipeline names can
//! be worked with. One file each.

mod objects;

use super::Check;
use crate::config::Pipeline;

/// Asks every server that `pipeline` names.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    objects::check(pipeline).await
}
