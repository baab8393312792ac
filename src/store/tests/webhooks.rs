//! What webhooks tell is queued, claimed by one, and ended by whoever holds it.

use super::*;

fn delivery(id: &str, webhook: &str) -> NewDelivery {
    NewDelivery {
        delivery_id: id.into(),
        pipeline: "p".into(),
        webhook: webhook.into(),
        event: "job.done".into(),
        tenant: None,
        body: format!("{{\"id\":\"{id}\"}}"),
        created_ms: 10,
        give_up_ms: 1_000,
    }
}

fn claim(webhook: &str, now_ms: i64) -> DeliveryClaim<'_> {
    DeliveryClaim { pipeline: "p", webhook, most: 2, now_ms, until_ms: now_ms + 100 }
}

fn note(state: DeliveryState, due_ms: Option<i64>) -> DeliveryNote {
    let error = (state != DeliveryState::Delivered).then(|| "a\0b".to_owned());
    DeliveryNote { tried_ms: 20, took_ms: 3, status: Some(500), error, state, due_ms }
}

fn ids(rows: &[Delivery]) -> Vec<&str> {
    let mut ids: Vec<_> = rows.iter().map(|row| row.delivery_id.as_str()).collect();
    ids.sort_unstable();
    ids
}

async fn of_many_who_claim_one_has_each_delivery(on: Database) {
    let fixture = Fixture::new(on).await;
    let (store, other) = (&fixture.store, fixture.again().await);
    let new: Vec<_> = (0..6).map(|n| delivery(&format!("d{n}"), "ops")).collect();
    store.add_deliveries(&new).await.unwrap();
    store.add_deliveries(&[delivery("x", "other")]).await.unwrap();
    assert_eq!(store.webhooks_due("p", 10).await.unwrap(), ["ops", "other"]);
    assert!(store.webhooks_due("p", 9).await.unwrap().is_empty(), "not due yet");
    assert!(store.webhooks_due("q", 10).await.unwrap().is_empty(), "another pipeline's");
    let claiming = (0..6).map(|n| [store, &other][n % 2].claim_deliveries(claim("ops", 10)));
    let claimed: Vec<Delivery> =
        futures::future::join_all(claiming).await.into_iter().flat_map(|claimed| claimed.unwrap()).collect();
    assert_eq!(ids(&claimed), ["d0", "d1", "d2", "d3", "d4", "d5"]);
    assert_eq!(store.webhooks_due("p", 109).await.unwrap(), ["other"]);
    assert_eq!(store.webhooks_due("p", 110).await.unwrap(), ["ops", "other"], "claims end by themselves");
    other.close().await;
}

async fn only_the_last_who_claimed_a_delivery_says_what_came_of_it(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    store.add_deliveries(&[delivery("d", "ops")]).await.unwrap();
    let slow = store.claim_deliveries(claim("ops", 10)).await.unwrap().remove(0);
    let next = store.claim_deliveries(claim("ops", 110)).await.unwrap().remove(0);
    let again = note(DeliveryState::Waiting, Some(300));
    assert!(!store.note_delivery("d", slow.claim, &note(DeliveryState::Failed, None)).await.unwrap());
    assert!(store.note_delivery("d", next.claim, &again).await.unwrap());
    let row = store.delivery("d").await.unwrap().unwrap();
    let tried = (row.state, row.attempts, row.due_ms, row.tried_ms, row.took_ms, row.status, row.ended_ms);
    assert_eq!(tried, (DeliveryState::Waiting, 1, 300, Some(20), Some(3), Some(500), None));
    assert_eq!((row.error.as_deref(), row.body.as_str()), (Some("a\0b"), "{\"id\":\"d\"}"));
    let last = store.claim_deliveries(claim("ops", 300)).await.unwrap().remove(0);
    assert!(store.note_delivery("d", last.claim, &note(DeliveryState::Delivered, None)).await.unwrap());
    let row = store.delivery("d").await.unwrap().unwrap();
    assert_eq!((row.state, row.error, row.ended_ms), (DeliveryState::Delivered, None, Some(23)));
    assert!(store.webhooks_due("p", 9_999).await.unwrap().is_empty());

    let row = store.redeliver("d", 400, 2_000).await.unwrap().unwrap();
    assert_eq!((row.state, row.attempts, row.due_ms, row.ended_ms), (DeliveryState::Waiting, 0, 400, None));
    assert_eq!(store.redeliver("e\0", 400, 2_000).await.unwrap(), None);
}

async fn what_is_told_of_a_job_is_queued_with_its_end_or_not_at_all(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let job = NewJob {
        kind: "pack".into(),
        work: "{}".into(),
        pipeline: "p".into(),
        stream: None,
        tenant: None,
        asked_by: "a".into(),
        priority: 0,
        asked_ms: 5,
    };
    store.add_job(&job).await.unwrap();
    let claim = JobClaim { worker: "w".into(), now_ms: 10, lease_ms: 20 };
    let first = |open: &[JobRow]| open.first().map(|row| row.job_id);
    let zombie = store.claim_job(&claim, &first).await.unwrap().unwrap().held();
    let held = store.claim_job(&claim, &first).await.unwrap().unwrap().held();
    let end = JobEnd::Done("{}".into());
    assert!(!store.end_job(zombie, &end, &[delivery("z", "ops")], 30).await.unwrap());
    assert!(store.end_job(held, &end, &[delivery("d", "ops")], 30).await.unwrap());
    let all = store.deliveries(&DeliveryFilter::default(), None, 9).await.unwrap();
    assert_eq!(ids(&all), ["d"]);
}

async fn deliveries_are_listed_by_pages_and_the_old_ones_forgotten(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let new = [delivery("1", "ops"), delivery("2", "other"), delivery("3", "ops")];
    store.add_deliveries(&new).await.unwrap();
    let all = DeliveryFilter::default();
    let listed = |rows: Vec<Delivery>| rows.into_iter().map(|row| row.delivery_id).collect::<Vec<_>>();
    assert_eq!(listed(store.deliveries(&all, None, 2).await.unwrap()), ["3", "2"]);
    assert_eq!(listed(store.deliveries(&all, Some("2"), 2).await.unwrap()), ["1"]);
    let waiting = DeliveryFilter { webhook: Some("ops".into()), state: Some(DeliveryState::Waiting) };
    assert_eq!(listed(store.deliveries(&waiting, None, 9).await.unwrap()), ["3", "1"]);
    for claimed in store.claim_deliveries(claim("ops", 10)).await.unwrap() {
        let done = note(DeliveryState::Delivered, None);
        store.note_delivery(&claimed.delivery_id, claimed.claim, &done).await.unwrap();
    }
    assert_eq!(store.remove_old_deliveries(23).await.unwrap(), 0);
    assert_eq!(store.remove_old_deliveries(24).await.unwrap(), 2);
    assert_eq!(store.remove_old_deliveries(1_001).await.unwrap(), 1, "nobody tries it any more");
}

async fn a_tenant_that_is_erased_is_in_no_delivery_any_more(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let of = |id: &str, tenant: &str| NewDelivery { tenant: Some(tenant.into()), ..delivery(id, "ops") };
    store.add_deliveries(&[of("1", "a\0"), of("2", "b"), delivery("3", "ops")]).await.unwrap();
    let subject = Subject { tenant: "a\0".into(), session: None };
    let erasure = store.ask_erasure(&subject, &[], 1).await.unwrap();
    store.forget_subject(erasure).await.unwrap();
    let left = store.deliveries(&DeliveryFilter::default(), None, 9).await.unwrap();
    assert_eq!(ids(&left), ["2", "3"]);
}

conformance!(
    of_many_who_claim_one_has_each_delivery,
    only_the_last_who_claimed_a_delivery_says_what_came_of_it,
    what_is_told_of_a_job_is_queued_with_its_end_or_not_at_all,
    deliveries_are_listed_by_pages_and_the_old_ones_forgotten,
    a_tenant_that_is_erased_is_in_no_delivery_any_more,
);
