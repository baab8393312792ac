//! Jobs are queued, claimed by one, and ended by whoever holds them.

use super::*;

fn job(kind: &str) -> NewJob {
    NewJob {
        kind: kind.into(),
        work: format!("{{\"kind\":\"{kind}\"}}"),
        pipeline: "p".into(),
        stream: Some("s".into()),
        tenant: None,
        asked_by: "a\0b".into(),
        priority: 0,
        asked_ms: 5,
    }
}

fn claim(worker: &str, now_ms: i64) -> JobClaim {
    JobClaim { worker: worker.into(), now_ms, lease_ms: now_ms + 100 }
}

fn first_queued(open: &[JobRow]) -> Option<i64> {
    open.iter().find(|row| row.state == JobState::Queued).map(|row| row.job_id)
}

fn first(open: &[JobRow]) -> Option<i64> {
    open.first().map(|row| row.job_id)
}

async fn of_many_claimants_one_has_each_job(on: Database) {
    let fixture = Fixture::new(on).await;
    let (store, other) = (&fixture.store, fixture.again().await);
    for kind in ["pack", "audit", "pack"] {
        store.add_job(&job(kind)).await.unwrap();
    }
    let claims: Vec<JobClaim> = (0..8).map(|n| claim(&format!("w{n}"), 10)).collect();
    let claiming = claims.iter().zip([store, &other].into_iter().cycle());
    let claimed = futures::future::join_all(claiming.map(|(claim, of)| of.claim_job(claim, &first_queued)));
    let mut claimed: Vec<JobRow> = claimed.await.into_iter().filter_map(|claimed| claimed.unwrap()).collect();
    claimed.sort_unstable_by_key(|row| row.job_id);
    let ids: Vec<i64> = claimed.iter().map(|row| row.job_id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "none twice: {ids:?}");
    let row = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!(row, claimed[0]);
    assert_eq!((row.state, row.epoch, row.attempts, row.lease_ms), (JobState::Running, 1, 1, Some(110)));
    assert_eq!((row.asked_by.as_str(), row.started_ms), ("a\0b", Some(10)));
    other.close().await;
}

async fn a_worker_whose_job_was_claimed_again_has_nothing_to_say(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    store.add_job(&job("pack")).await.unwrap();
    let zombie = store.claim_job(&claim("w1", 10), &first).await.unwrap().unwrap().held();
    let place = Some("{\"next\":7}".to_owned());
    let progress = JobProgress { done: 7, total: Some(9), note: "n".into(), place: place.clone() };
    assert_eq!(store.report_job(zombie, &progress, 120).await.unwrap(), Some(false));
    let again = store.claim_job(&claim("w2", 200), &first).await.unwrap().unwrap();
    assert_eq!((again.epoch, again.attempts, again.done_before), (2, 2, 7));
    assert_eq!((again.place.clone(), again.started_ms, again.claimed_ms), (place, Some(10), Some(200)));
    assert_eq!(store.report_job(zombie, &progress, 999).await.unwrap(), None);
    assert!(!store.end_job(zombie, &JobEnd::Done("1".into()), &[], 210).await.unwrap());
    assert!(store.end_job(again.held(), &JobEnd::Done("{\"n\":2}".into()), &[], 220).await.unwrap());
    let row = store.job(again.job_id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.ended_ms, row.result.as_deref()),
        (JobState::Done, Some(220), Some("{\"n\":2}"))
    );
    assert_eq!(row.place, None, "nobody goes on with it");
    assert!(!store.end_job(again.held(), &JobEnd::Cancelled, &[], 230).await.unwrap(), "an end is an end");
}

async fn a_job_is_cancelled_at_once_or_told_to_whoever_works_on_it(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let (running, queued) =
        (store.add_job(&job("pack")).await.unwrap(), store.add_job(&job("pack")).await.unwrap());
    let held = store.claim_job(&claim("w", 10), &first).await.unwrap().unwrap().held();
    assert_eq!(store.cancel_job(queued, 20).await.unwrap(), Some(JobState::Cancelled));
    assert_eq!(store.cancel_job(running, 20).await.unwrap(), Some(JobState::Running));
    assert_eq!(store.report_job(held, &JobProgress::default(), 120).await.unwrap(), Some(true));
    store.end_job(held, &JobEnd::Cancelled, &[], 30).await.unwrap();
    assert_eq!(store.cancel_job(running, 40).await.unwrap(), None);
    assert_eq!(store.cancel_job(999, 40).await.unwrap(), None);
    assert!(store.open_jobs().await.unwrap().is_empty());
    let ended = |row: JobRow| (row.state, row.ended_ms);
    assert_eq!(ended(store.job(queued).await.unwrap().unwrap()), (JobState::Cancelled, Some(20)));
    assert_eq!(ended(store.job(running).await.unwrap().unwrap()), (JobState::Cancelled, Some(30)));
}

async fn what_is_given_back_counts_as_no_attempt_and_progress_makes_a_failure_the_first(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let id = store.add_job(&job("pack")).await.unwrap();
    for (done, end, attempts) in [
        (0, JobEnd::Again(50, "away".into()), 1),
        (0, JobEnd::Again(60, "away".into()), 2),
        (0, JobEnd::GivenBack, 2),
        (9, JobEnd::Again(70, "away".into()), 1),
    ] {
        let held = store.claim_job(&claim("w", 10), &first).await.unwrap().unwrap().held();
        store.report_job(held, &JobProgress { done, ..JobProgress::default() }, 120).await.unwrap();
        assert!(store.end_job(held, &end, &[], 30).await.unwrap());
        let row = store.job(id).await.unwrap().unwrap();
        assert_eq!((row.state, row.attempts, row.ended_ms), (JobState::Queued, attempts, None), "{end:?}");
    }
    assert_eq!(store.job(id).await.unwrap().unwrap().not_before_ms, 70);
}

async fn a_due_time_is_seen_to_once(on: Database) {
    let fixture = Fixture::new(on).await;
    let (store, other) = (&fixture.store, fixture.again().await);
    assert_eq!(store.schedule_seen("nightly", "s", 100).await.unwrap(), 100);
    assert_eq!(other.schedule_seen("nightly", "s", 150).await.unwrap(), 100);
    let new = job("audit");
    let settling = (0..8).map(|n| [store, &other][n % 2].settle_due("nightly", "s", 200, Some(&new)));
    let ids = futures::future::join_all(settling).await;
    let ids: Vec<i64> = ids.into_iter().filter_map(|id| id.unwrap()).collect();
    assert_eq!(ids.len(), 1);
    let row = store.job(ids[0]).await.unwrap().unwrap();
    assert_eq!((row.schedule.as_deref(), row.due_ms), (Some("nightly"), Some(200)));
    // An earlier time never, and a later one without a job is passed over.
    assert_eq!(store.settle_due("nightly", "s", 199, Some(&new)).await.unwrap(), None);
    assert_eq!(store.settle_due("nightly", "s", 300, None).await.unwrap(), None);
    assert_eq!(store.schedule_seen("nightly", "s", 0).await.unwrap(), 300);
    assert_eq!(store.open_jobs().await.unwrap().len(), 1);
    other.close().await;
}

async fn jobs_are_listed_by_pages_and_the_old_ones_forgotten(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    for kind in ["pack", "audit", "pack"] {
        store.add_job(&job(kind)).await.unwrap();
    }
    let kinds = |rows: Vec<JobRow>| rows.into_iter().map(|row| row.kind).collect::<Vec<_>>();
    let all = JobFilter::default();
    let page = store.jobs(&all, None, 2).await.unwrap();
    let next = page.last().unwrap().job_id;
    assert_eq!(kinds(page), ["pack", "audit"]);
    assert_eq!(kinds(store.jobs(&all, Some(next), 2).await.unwrap()), ["pack"]);
    let packs = JobFilter { kind: Some("pack".into()), state: Some(JobState::Queued) };
    assert_eq!(store.jobs(&packs, None, 10).await.unwrap().len(), 2);
    store.cancel_job(next, 50).await.unwrap();
    assert_eq!(store.remove_old_jobs(50).await.unwrap(), 0);
    assert_eq!(store.remove_old_jobs(51).await.unwrap(), 1);
    assert_eq!(kinds(store.jobs(&all, None, 10).await.unwrap()), ["pack", "pack"]);
}

async fn a_tenant_that_is_erased_is_in_no_job_any_more(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let of = |tenant: &str| NewJob { tenant: Some(tenant.into()), ..job("replay") };
    for tenant in ["a\0", "b"] {
        store.add_job(&of(tenant)).await.unwrap();
    }
    store.add_job(&job("pack")).await.unwrap();
    for (tenant, session, left) in [("b", Some("s"), 3), ("a\0", None, 2)] {
        let subject = Subject { tenant: tenant.into(), session: session.map(str::to_owned) };
        let id = store.ask_erasure(&subject, &[], 1).await.unwrap();
        store.forget_subject(id).await.unwrap();
        assert_eq!(store.open_jobs().await.unwrap().len(), left, "{tenant:?}");
    }
}

async fn tidying_takes_nothing_away(on: Database) {
    let records = (0..50).map(|n| record(n, "a", "river", Some(vec![1.0, 0.0, 0.0, 0.1]))).collect();
    let fixture = Fixture::filled(on, records).await;
    let before = fixture.store.inventory().await.unwrap();
    fixture.store.tidy(false).await.unwrap();
    fixture.store.tidy(true).await.unwrap();
    assert_eq!(fixture.store.inventory().await.unwrap(), before);
    let query = Query { vector: Some(vec![1.0, 0.0, 0.0, 0.1]), limit: 60, ..fixture.query("a", "river") };
    assert_eq!(fixture.store.search(&query).await.unwrap().hits.len(), 50);
}

conformance!(
    of_many_claimants_one_has_each_job,
    a_worker_whose_job_was_claimed_again_has_nothing_to_say,
    a_job_is_cancelled_at_once_or_told_to_whoever_works_on_it,
    what_is_given_back_counts_as_no_attempt_and_progress_makes_a_failure_the_first,
    a_due_time_is_seen_to_once,
    jobs_are_listed_by_pages_and_the_old_ones_forgotten,
    a_tenant_that_is_erased_is_in_no_job_any_more,
    tidying_takes_nothing_away,
);
