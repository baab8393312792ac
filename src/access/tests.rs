//! Keys and refusals over a store, with a clock that the test turns.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::{NewKey, Outcome, RateTier, Role};

struct Place {
    access: Access,
    upkeep: Upkeep,
    store: Store,
    now: Arc<AtomicI64>,
    _folder: tempfile::TempDir,
}

async fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.sqlite")).await.unwrap();
    let now = Arc::new(AtomicI64::new(1_000_000));
    let clock: Clock = {
        let now = now.clone();
        Arc::new(move || now.load(Ordering::Relaxed))
    };
    let (access, upkeep) = open(Some(&Settings::default()), &store, clock).unwrap();
    Place { access, upkeep, store, now, _folder: folder }
}

impl Place {
    async fn key(&self, roles: &[Role]) -> (String, Credential) {
        let new = NewKey {
            name: "n".into(),
            tenant: Some("acme".into()),
            roles: roles.iter().copied().collect(),
            tier: RateTier::Free,
            expires_ms: None,
        };
        let now_ms = self.now.load(Ordering::Relaxed);
        let minted =
            keys::create(&self.store, new, &Principal::local("me"), &rand::random(), now_ms).await.unwrap();
        (minted.key.id, Credential::new(minted.text))
    }

    async fn code(&self, credential: &Credential) -> &'static str {
        let known = self.access.authenticator.authenticate(Some(credential)).await;
        known.map_or_else(|refused| refused.code(), |_| "known")
    }

    fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_revocation_holds_after_ten_seconds_wherever_it_was_made() {
    let place = place().await;
    let (id, credential) = place.key(&[Role::Viewer]).await;
    assert_eq!(place.code(&credential).await, "known");
    let now_ms = place.now.load(Ordering::Relaxed);
    keys::revoke(&place.store, &id, &Principal::local("me"), now_ms).await.unwrap();
    place.pass(9_999);
    assert_eq!(place.code(&credential).await, "known", "remembered");
    place.pass(1);
    assert_eq!(place.code(&credential).await, "revoked_key");
}

#[tokio::test]
async fn an_expiry_holds_at_once() {
    let place = place().await;
    let (id, credential) = place.key(&[Role::Viewer]).await;
    let now_ms = place.now.load(Ordering::Relaxed);
    let by = Principal::local("me");
    let successor =
        keys::rotate(&place.store, &id, (5_000, None), &by, &rand::random(), now_ms).await.unwrap();
    let successor = Credential::new(successor.text);
    assert_eq!(place.code(&credential).await, "known");
    place.pass(5_000);
    assert_eq!(
        place.code(&credential).await,
        "expired_key",
        "remembered, but not for longer than it is good"
    );
    assert_eq!(place.code(&successor).await, "known");
    let again = keys::rotate(&place.store, &id, (5_000, None), &by, &rand::random(), now_ms + 5_000).await;
    assert!(matches!(again, Err(keys::KeyError::Over { .. })));
}

#[tokio::test]
async fn while_the_store_is_away_keys_hold_that_it_has_told_of() {
    let place = place().await;
    let (_, known) = place.key(&[Role::Viewer]).await;
    let (_, stranger) = place.key(&[Role::Viewer]).await;
    assert_eq!(place.code(&known).await, "known");
    place.store.close().await;
    place.pass(299_999);
    assert_eq!(place.code(&known).await, "known");
    assert_eq!(place.code(&stranger).await, "key_store_away");
    place.pass(1);
    assert_eq!(place.code(&known).await, "key_store_away");
}

#[tokio::test]
async fn a_use_is_noted_once_a_minute_and_refusals_in_few_rows() {
    let place = place().await;
    let (id, credential) = place.key(&[Role::Viewer]).await;
    let visit = Visit { act: "ingest", peer: Some("10.0.0.1:80".into()), request_id: Some("r1".into()) };
    let first_ms = place.now.load(Ordering::Relaxed);
    for _ in 0..100 {
        let denied = place.access.admit(Some(&credential), Right::Ingest, &visit).await.unwrap_err();
        assert_eq!(denied.code(), "right_missing");
        assert_eq!(
            place.access.admit(None, Right::Ingest, &visit).await.unwrap_err().code(),
            "missing_credentials"
        );
        place.pass(1);
    }
    let stop = CancellationToken::new();
    stop.cancel();
    place.upkeep.run(stop).await.unwrap();
    assert_eq!(place.store.key(&id).await.unwrap().unwrap().used_ms, Some(first_ms));
    let rows = place.store.trail(i64::MAX, 100).await.unwrap();
    let told: Vec<_> =
        rows.iter().map(|row| (&*row.entry.principal, row.entry.detail.as_str(), row.times)).collect();
    assert_eq!(
        told,
        [
            (id.as_str(), "right_missing", 99),
            ("unknown", "missing_credentials", 99),
            ("unknown", "missing_credentials", 1),
            (id.as_str(), "right_missing", 1),
            ("local:me", "viewer; one tenant", 1),
        ]
    );
    let refused = &rows[3].entry;
    assert_eq!(
        (refused.outcome, &*refused.act, refused.peer.as_deref()),
        (Outcome::Refused, "ingest", Some("10.0.0.1"))
    );
}

#[tokio::test]
async fn what_a_store_does_not_take_waits_and_a_flood_slows_nobody() {
    let place = place().await;
    let visit = Visit { act: "search", peer: None, request_id: None };
    let began = std::time::Instant::now();
    for _ in 0..50_000 {
        place.access.turned_away("unknown_key", &visit);
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    let stop = CancellationToken::new();
    stop.cancel();
    place.upkeep.run(stop).await.unwrap();
    assert_eq!(place.store.trail(i64::MAX, 100).await.unwrap().len(), 2);
}

#[tokio::test]
async fn without_settings_everybody_is_let_in_and_may_do_everything() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.sqlite")).await.unwrap();
    let (access, _upkeep) = open(None, &store, crate::clock::system()).unwrap();
    let visit = Visit { act: "x", peer: None, request_id: None };
    let principal = access.admit(None, Right::Administer, &visit).await.unwrap();
    assert_eq!(principal, Principal::open());
    assert!(!access.authenticator.is_on());
}

#[tokio::test]
async fn a_key_that_could_do_nothing_is_not_made() {
    let place = place().await;
    let made = async |new: NewKey| {
        let by = Principal::local("me");
        keys::create(&place.store, new, &by, &rand::random(), 1_000).await.err().map(|error| error.code())
    };
    let new = || NewKey {
        name: "n".into(),
        tenant: None,
        roles: [Role::Viewer].into_iter().collect(),
        tier: RateTier::Free,
        expires_ms: None,
    };
    assert_eq!(made(new()).await, None);
    assert_eq!(made(NewKey { roles: [].into_iter().collect(), ..new() }).await, Some("useless_key"));
    assert_eq!(made(NewKey { expires_ms: Some(1_000), ..new() }).await, Some("useless_key"));
    for tenant in ["", "*", "a\nb", &"x".repeat(257)] {
        assert_eq!(made(NewKey { tenant: Some(tenant.into()), ..new() }).await, Some("useless_key"));
    }
    assert_eq!(made(NewKey { name: String::new(), ..new() }).await, Some("useless_key"));
    let by = Principal::local("me");
    assert_eq!(keys::revoke(&place.store, "gone", &by, 1).await.unwrap_err().code(), "unknown_key");
}

/// Prints what a look at a key costs each request, once it is remembered:
/// `cargo test --release --lib what_a_look_at_a_key_costs -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "measures"]
async fn what_a_look_at_a_key_costs() {
    let place = place().await;
    let (_, credential) = place.key(&[Role::Ingester]).await;
    let visit = Visit { act: "ingest", peer: None, request_id: None };
    let began = std::time::Instant::now();
    for _ in 0..100_000 {
        place.access.admit(Some(&credential), Right::Ingest, &visit).await.unwrap();
    }
    println!("{:?} each", began.elapsed() / 100_000);
}
