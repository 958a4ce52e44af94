use tokio::sync::Semaphore;

use super::*;
use crate::store::{Entry, Snapshot, SqliteStore, StoreFuture, Watch};

/// A store that answers a transaction, once it has committed it, only when it is let.
#[derive(Debug)]
struct Slow {
    inner: SqliteStore,
    committed: Semaphore,
    answers: Semaphore,
}

impl Store for Slow {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Entry>> {
        self.inner.get(key)
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Snapshot> {
        self.inner.range(range)
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, Outcome> {
        Box::pin(async move {
            let outcome = self.inner.txn(txn).await;
            self.committed.add_permits(1);
            self.answers.acquire().await.expect("open").forget();
            outcome
        })
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }
}

async fn events(store: &dyn Store) -> Vec<Event> {
    let stored = store.range(Range::prefix(keys::EVENTS)).await.expect("read").entries;
    stored.iter().map(|entry| decode(&entry.key, &entry.value).expect("an event")).collect()
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_event_to_be_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let inner = SqliteStore::open(&dir.path().join("store.db")).expect("opens");
    let (committed, answers) = (Semaphore::new(0), Semaphore::new(0));
    let store = Arc::new(Slow { inner, committed, answers });
    let ledger = Arc::new(Ledger::open(store.clone()).await.expect("opens"));
    let gone = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.event(NewEvent::new("farm-applied", "of a caller that hung up")).await }
    });
    store.committed.acquire().await.expect("open").forget();
    gone.abort();
    assert!(gone.await.expect_err("it was dropped").is_cancelled());
    store.answers.add_permits(2);
    ledger.event(NewEvent::new("farm-applied", "of another")).await.expect("stored");
    let stored: Vec<_> =
        events(&*store).await.into_iter().map(|event| (event.sequence, event.text)).collect();
    assert_eq!(stored, [(1, "of a caller that hung up".to_owned()), (2, "of another".to_owned())]);
}
