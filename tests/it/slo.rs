//! `thalweg bench slo` judges each objective against a daemon of its own.

use serde_json::Value;

use crate::cli::{text, thalweg};

#[test]
fn every_objective_is_measured_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let (scratch, json) = (dir.path().to_str().unwrap(), dir.path().join("slo.json"));
    let parts = ["--only", "mixed", "--only", "identity", "--only", "overload"];
    let how =
        ["--quick", "--markdown", "--runs", "1", "--scratch", scratch, "--json", json.to_str().unwrap()];
    let done = thalweg(&[&["bench", "slo"], &parts[..], &how[..]].concat());
    assert!(done.status.success(), "{}", text(&done));

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["bench"], "slo");
    let results = report["results"].as_array().unwrap();
    let judged = |beginning: &str, end: &str| {
        let found = results.iter().find(|result| {
            let case = result["case"].as_str().unwrap();
            case.starts_with(beginning) && case.ends_with(end)
        });
        let found = found.unwrap_or_else(|| panic!("no result {beginning} .. {end}: {report:#}"));
        assert!(found["met"].is_boolean(), "{found}");
        found
    };
    for clients in ["mixed, 30 clients, ", "mixed, 64 clients, "] {
        judged(clients, "p95");
        // A slow machine makes answers late, never wrong.
        assert_eq!(judged(clients, "errors")["met"], true, "{report:#}");
        assert_eq!(judged(clients, "availability")["ours"], 100.0, "{report:#}");
    }
    judged("identity, ", "key of all tenants: processor time");
    judged("identity, ", "key of one tenant: processor time");
    for end in ["peak memory", "refusals p95", "full speed again after"] {
        judged("overload, ", end);
    }
    for end in
        ["acknowledged records there after kill -9", "neither done nor refused with a time to come again"]
    {
        assert_eq!(judged("overload, ", end)["met"], true, "{report:#}");
    }
    let shown = String::from_utf8_lossy(&done.stdout);
    assert!(shown.contains("\n| case | unit | ") && shown.contains(" met |"), "{shown}");
}
