//! The object store.

use super::Check;
use crate::{
    artifact::{Artifacts, Probe},
    clock,
    config::Pipeline,
    store::Store,
};

/// A server refuses requests whose time is 15 minutes off.
const ALARMING_MS: i64 = 5 * 60 * 1000;
const NOTABLE_MS: i64 = 30 * 1000;

/// Works with the object store as the daemon would; leaves nothing there.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    if pipeline.artifacts.url.is_none() {
        return vec![Check::ok("object store", "a local folder")];
    }
    match probe(pipeline).await {
        Ok(probe) => of(&probe),
        Err(error) => {
            vec![Check::problem(
                "object store",
                format!("{error:#}"),
                "see docs/artifacts.md, `When it is refused`",
            )]
        }
    }
}

async fn probe(pipeline: &Pipeline) -> anyhow::Result<Probe> {
    // A probe needs no registry, and a pipeline that never ran has none.
    let folder = tempfile::tempdir()?;
    let store = Store::open(&folder.path().join("none.sqlite")).await?;
    let artifacts = Artifacts::open(&pipeline.artifacts, folder.path(), folder.path(), store.clone())?;
    let probe = artifacts.probe(clock::system_ms()).await;
    store.close().await;
    Ok(probe?)
}

/// What a probe that was possible says.
fn of(probe: &Probe) -> Vec<Check> {
    let place = &probe.place;
    let mut checks =
        vec![Check::ok("object store", format!("{place}: objects can be listed, put, read and removed"))];
    checks.push(if probe.is_conditional {
        Check::ok("object store: conditional put", "honoured")
    } else {
        Check::warning(
            "object store: conditional put",
            "ignored: an object can be overwritten",
            "objects are named by their content, so the same bytes are written again; where others can write there too, use a server that honours If-None-Match",
        )
    });
    checks.push(match probe.ahead_ms {
        None => {
            Check::warning("object store: clock", "the server tells no time", "see that its clock is set")
        }
        Some(ms) if ms.abs() > ALARMING_MS => Check::problem(
            "object store: clock",
            format!("{} s apart", ms / 1000),
            "set the clocks of this machine and of the server; at 15 minutes requests are refused",
        ),
        Some(ms) if ms.abs() > NOTABLE_MS => Check::warning(
            "object store: clock",
            format!("{} s apart", ms / 1000),
            "set the clocks of this machine and of the server",
        ),
        Some(_) => Check::ok("object store: clock", "the same as here"),
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::{super::super::Verdict, *};

    #[test]
    fn a_clock_that_is_off_is_noticed_before_requests_are_refused() {
        let verdict = |ahead_ms| {
            let checks = of(&Probe { place: "s3://b".into(), is_conditional: true, ahead_ms });
            checks.last().unwrap().verdict
        };
        assert_eq!(verdict(Some(900)), Verdict::Ok);
        assert_eq!(verdict(Some(-40_000)), Verdict::Warning);
        assert_eq!(verdict(Some(-400_000)), Verdict::Problem);
        assert_eq!(verdict(None), Verdict::Warning);
    }

    #[test]
    fn a_server_that_overwrites_is_told() {
        let checks = of(&Probe { place: "s3://b".into(), is_conditional: false, ahead_ms: Some(0) });
        assert_eq!(checks[1].verdict, Verdict::Warning);
    }
}
