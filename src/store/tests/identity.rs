//! Keys and the trail are the same in every database.

use sqlx::{AssertSqlSafe, Connection};

use super::*;
use crate::identity::{ApiKey, Entry, NewKey, Outcome, Principal, RateTier, Role};

conformance! {
    a_key_comes_back_as_it_was_and_is_revoked_once,
    a_new_key_shortens_the_life_of_the_one_it_replaces_and_never_lengthens_it,
    what_is_done_with_a_key_is_in_the_trail_or_not_done,
    the_trail_is_read_backwards_and_only_added_to,
    the_keys_of_a_tenant_go_with_it,
}

fn key(n: u8, tenant: Option<&str>) -> ApiKey {
    let new = NewKey {
        name: format!("key {n} \0 é"),
        tenant: tenant.map(str::to_owned),
        roles: [Role::Viewer, Role::Ingester].into_iter().collect(),
        tier: RateTier::Pro,
        expires_ms: Some(1_000),
    };
    new.mint(&[n; 40], 10 + i64::from(n)).key
}

fn entry(act: &'static str, key: &ApiKey) -> Entry {
    Entry::done(5, &Principal::local("me"), act, key.id.as_str())
}

async fn add(store: &Store, key: &ApiKey) {
    store.add_key(key, None, &entry("keys.create", key)).await.unwrap();
}

async fn a_key_comes_back_as_it_was_and_is_revoked_once(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let (one, all) = (key(1, Some("a\0b")), key(2, None));
    add(store, &one).await;
    add(store, &all).await;
    assert_eq!(store.key(&one.id).await.unwrap().as_ref(), Some(&one));
    assert_eq!(store.keys().await.unwrap(), [one.clone(), all.clone()]);
    assert_eq!(store.key("' OR 1=1 --").await.unwrap(), None);

    store.note_key_uses(&[(one.id.clone(), 70), ("gone".into(), 80)]).await.unwrap();
    store.note_key_uses(&[(one.id.clone(), 60)]).await.unwrap();
    assert_eq!(store.key(&one.id).await.unwrap().unwrap().used_ms, Some(70), "the last use");

    assert!(store.revoke_key(&one.id, 90, &entry("keys.revoke", &one)).await.unwrap());
    assert!(!store.revoke_key(&one.id, 95, &entry("keys.revoke", &one)).await.unwrap());
    assert!(!store.revoke_key("gone", 95, &entry("keys.revoke", &one)).await.unwrap());
    assert_eq!(store.key(&one.id).await.unwrap().unwrap().revoked_ms, Some(90));
    assert_eq!(store.trail(i64::MAX, 10).await.unwrap().len(), 3, "what was not done is not told");
}

async fn a_new_key_shortens_the_life_of_the_one_it_replaces_and_never_lengthens_it(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let old = key(1, None);
    add(store, &old).await;
    for (n, until_ms, left) in [(2, 500, 500), (3, 900, 500)] {
        let new = ApiKey { replaces: Some(old.id.clone()), ..key(n, None) };
        store.add_key(&new, Some(until_ms), &entry("keys.rotate", &new)).await.unwrap();
        assert_eq!(store.key(&new.id).await.unwrap().as_ref(), Some(&new));
        assert_eq!(store.key(&old.id).await.unwrap().unwrap().expires_ms, Some(left));
    }
    let endless = ApiKey { expires_ms: None, ..key(4, None) };
    add(store, &endless).await;
    let new = ApiKey { replaces: Some(endless.id.clone()), ..key(5, None) };
    store.add_key(&new, Some(700), &entry("keys.rotate", &new)).await.unwrap();
    assert_eq!(store.key(&endless.id).await.unwrap().unwrap().expires_ms, Some(700));
}

async fn what_is_done_with_a_key_is_in_the_trail_or_not_done(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let one = key(1, None);
    add(store, &one).await;
    // The id is taken, so neither key nor row is written.
    assert!(store.add_key(&one, None, &entry("keys.create", &one)).await.is_err());
    let rows = store.trail(i64::MAX, 10).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].entry.clone(), rows[0].times, rows[0].last_ms), (entry("keys.create", &one), 1, 5));
}

async fn the_trail_is_read_backwards_and_only_added_to(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let refused = Entry {
        peer: Some("::1".into()),
        request_id: Some("r\0".into()),
        ..Entry::unknown(7, "search", "unknown_key")
    };
    let counted = NewTrailRow { entry: refused.clone(), times: 3, last_ms: 9 };
    let more = (0..4).map(|n| Entry::refused(n, &Principal::open(), "x", "right_missing").into());
    store.append_trail(&more.chain([counted]).collect::<Vec<_>>()).await.unwrap();
    let newest = store.trail(i64::MAX, 2).await.unwrap();
    assert_eq!((&newest[0].entry, newest[0].times, newest[0].last_ms), (&refused, 3, 9));
    assert_eq!(newest[0].entry.outcome, Outcome::Refused);
    let older = store.trail(newest[1].id, 10).await.unwrap();
    assert_eq!(older.iter().map(|row| row.entry.at_ms).collect::<Vec<_>>(), [2, 1, 0]);
    for change in ["UPDATE {} SET detail = ''", "DELETE FROM {}"] {
        let error = changed(&fixture, change).await.unwrap_err();
        assert!(error.to_string().contains("the trail is only added to"), "{error}");
    }
    assert_eq!(store.trail(i64::MAX, 10).await.unwrap().len(), 5);
}

/// Runs a statement as somebody might who has the database.
async fn changed(fixture: &Fixture, statement: &str) -> Result<(), sqlx::Error> {
    match &fixture.settings.url {
        Some(url) => {
            let statement = statement.replace("{}", "thalweg.trail");
            let mut connection = sqlx::PgConnection::connect(url.reveal()).await?;
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.map(drop)
        }
        None => {
            let url = format!("sqlite://{}", fixture.directory.path().join("store.sqlite").display());
            let mut connection = sqlx::SqliteConnection::connect(&url).await?;
            sqlx::raw_sql(AssertSqlSafe(statement.replace("{}", "trail")))
                .execute(&mut connection)
                .await
                .map(drop)
        }
    }
}

async fn the_keys_of_a_tenant_go_with_it(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    for key in [key(1, Some("a")), key(2, Some("b")), key(3, None)] {
        add(store, &key).await;
    }
    let streams = ["s".to_owned()];
    let session = Subject { tenant: "a".into(), session: Some("x".into()) };
    let id = store.ask_erasure(&session, &streams, 1).await.unwrap();
    store.forget_subject(id).await.unwrap();
    assert_eq!(store.keys().await.unwrap().len(), 3, "a session is not the tenant");
    let id = store.ask_erasure(&Subject { tenant: "a".into(), session: None }, &streams, 1).await.unwrap();
    store.forget_subject(id).await.unwrap();
    let left: Vec<_> = store.keys().await.unwrap().into_iter().map(|key| key.tenant).collect();
    assert_eq!(left, [Some("b".to_owned()), None]);
}
