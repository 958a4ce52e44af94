//! What every store must do, written against the trait; each implementation runs all of it.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

fn when(key: &str, revision: u64) -> Compare {
    Compare { key: key.to_owned(), revision }
}

async fn commit(store: &dyn Store, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
    store.txn(Txn { compares, ops }).await.expect("the store answers")
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    let snapshot = store.range(range).await.expect("the store answers");
    snapshot.entries.into_iter().map(|entry| entry.key).collect()
}

async fn compares_guard_writes(store: &dyn Store) {
    let Outcome::Committed(first) = commit(store, vec![when("a", 0)], vec![put("a", "1")]).await
    else {
        panic!("a new key conflicts")
    };
    let again = commit(store, vec![when("a", 0)], vec![put("a", "2"), put("b", "2")]).await;
    assert_eq!(again, Outcome::Conflict("a".to_owned()));
    assert_eq!(store.get("b").await.expect("get"), None, "a part of a refused txn was written");
    let Outcome::Committed(second) =
        commit(store, vec![when("a", first)], vec![put("a", "2"), put("b", "2")]).await
    else {
        panic!("the right revision conflicts")
    };
    assert!(second > first);
    let entry = store.get("a").await.expect("get").expect("there");
    assert_eq!((entry.value.as_slice(), entry.revision), (&b"2"[..], second));
    commit(store, vec![], vec![delete("a")]).await;
    assert_eq!(store.get("a").await.expect("get"), None);
    assert!(matches!(
        commit(store, vec![when("a", 0)], vec![put("a", "3")]).await,
        Outcome::Committed(_)
    ));
}

async fn ranges_are_ordered_and_bounded(store: &dyn Store) {
    let ops = ["p/1", "p/2", "p/3", "p0", "o/9"].map(|key| put(key, key)).to_vec();
    commit(store, vec![], ops).await;
    assert_eq!(keys(store, Range::prefix("p/")).await, ["p/1", "p/2", "p/3"]);
    assert_eq!(keys(store, Range::newest("p/", 2)).await, ["p/3", "p/2"]);
    let from = Range { from: "p/2".to_owned(), ..Range::prefix("p/") };
    assert_eq!(keys(store, from).await, ["p/2", "p/3"]);
    assert!(keys(store, Range::prefix("q/")).await.is_empty());
}

async fn watches_see_changes_in_order(store: &dyn Store) {
    let mut watch = store.watch("w/");
    commit(store, vec![], vec![put("w/1", "a"), put("x", "unseen")]).await;
    commit(store, vec![], vec![put("w/1", "b"), delete("w/1")]).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let change = watch.next().await.expect("a change");
        assert_eq!(change.key, "w/1");
        seen.push(change.value.map(|value| String::from_utf8(value).expect("text")));
    }
    assert_eq!(seen, [Some("a".to_owned()), Some("b".to_owned()), None]);
}

async fn one_of_many_racing_claims_wins(store: Arc<dyn Store>) {
    let mut racers = tokio::task::JoinSet::new();
    for i in 0..16 {
        let store = store.clone();
        racers.spawn(async move {
            commit(&*store, vec![when("race", 0)], vec![put("race", &i.to_string())]).await
        });
    }
    let outcomes = racers.join_all().await;
    let won = outcomes.iter().filter(|o| matches!(o, Outcome::Committed(_))).count();
    assert_eq!(won, 1);
}

fn sqlite() -> (tempfile::TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(&dir.path().join("store.db")).expect("opens");
    (dir, Arc::new(store))
}

#[tokio::test]
async fn sqlite_conforms() {
    let (_dir, store) = sqlite();
    compares_guard_writes(&*store).await;
    ranges_are_ordered_and_bounded(&*store).await;
    watches_see_changes_in_order(&*store).await;
    one_of_many_racing_claims_wins(store).await;
}

#[tokio::test]
async fn sqlite_keeps_what_it_committed() {
    let (dir, store) = sqlite();
    let Outcome::Committed(revision) = commit(&*store, vec![], vec![put("a", "1")]).await else {
        panic!("conflict")
    };
    drop(store);
    let store = SqliteStore::open(&dir.path().join("store.db")).expect("opens again");
    assert_eq!(store.get("a").await.expect("get").expect("there").revision, revision);
    assert_eq!(commit(&store, vec![], vec![put("b", "1")]).await, Outcome::Committed(revision + 1));
}

#[test]
fn sqlite_refuses_a_schema_it_does_not_know() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let raw = rusqlite::Connection::open(&path).expect("opens");
    raw.pragma_update(None, "user_version", 99).expect("set");
    drop(raw);
    let error = SqliteStore::open(&path).expect_err("opened an unknown schema");
    assert!(error.to_string().contains("99"), "{error}");
}

proptest! {
    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys(prefix in "[a-z/]{1,6}", rest in "[!-~]{0,6}") {
        let range = Range::prefix(&prefix);
        let key = format!("{prefix}{rest}");
        prop_assert!(key >= range.from && key < range.until);
    }
}
