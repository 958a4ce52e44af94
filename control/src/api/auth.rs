//! Tokens: `ID.SECRET`. The store has the BLAKE3 of the whole under the id; a secret of 32 random
//! bytes needs no slow hash.

use croft_proto::{OrganizationName, Secret};
use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::model::{Role, Token, Who, keys};
use crate::store::{Compare, Op, Outcome, Range, Store, StoreError, Txn};
use crate::world::{LedgerError, decode};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 256;

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No randomness.
    #[error("token: the operating system gives no randomness: {0}")]
    Random(getrandom::Error),
    /// It could not be stored.
    #[error("token: cannot be stored")]
    Store(#[from] StoreError),
    /// It could not be encoded.
    #[error("token: cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// Its id was taken.
    #[error("token: its id is taken; try again")]
    Taken,
    /// A stored one cannot be read.
    #[error(transparent)]
    Decode(#[from] LedgerError),
    /// No token has this id.
    #[error("token {0}: there is none with this id; `croft-control tokens` lists those that are")]
    Unknown(String),
}

/// A token that is accepted, by what may be shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// The part of it before the dot, 16 hexadecimal digits; no secret.
    pub id: String,
    /// Whose it is.
    pub organization: OrganizationName,
    /// What it allows.
    pub role: Role,
}

fn hash(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

/// Makes a token and stores its hash. The result is the only copy of the token itself.
///
/// # Errors
/// See [`TokenError`].
pub async fn issue(
    store: &dyn Store,
    organization: OrganizationName,
    role: Role,
) -> Result<Secret, TokenError> {
    let id = Secret::random(8).map_err(TokenError::Random)?;
    let secret = Secret::random(32).map_err(TokenError::Random)?;
    let token = Secret::new(format!("{}.{}", id.expose(), secret.expose()));
    let kept = Token { hash: hash(token.expose()), organization, role };
    let key = keys::token(id.expose());
    let value = serde_json::to_vec(&kept).map_err(TokenError::Encode)?;
    let compares = vec![Compare { key: key.clone(), revision: 0 }];
    match store.txn(Txn { compares, ops: vec![Op::Put { key, value }] }).await? {
        Outcome::Committed(_) => Ok(token),
        Outcome::Conflict(_) => Err(TokenError::Taken),
    }
}

/// All tokens that are accepted, by their ids.
///
/// # Errors
/// The store fails, or holds what this program cannot read.
pub async fn tokens(store: &dyn Store) -> Result<Vec<KnownToken>, TokenError> {
    let stored = store.range(Range::prefix(keys::TOKENS)).await?.entries;
    let known = stored.into_iter().map(|entry| {
        let Token { organization, role, .. } = decode(&entry.key, &entry.value)?;
        let id = entry.key.strip_prefix(keys::TOKENS).unwrap_or(&entry.key).to_owned();
        Ok::<_, TokenError>(KnownToken { id, organization, role })
    });
    known.collect()
}

/// Takes a token back: the next call with it is refused, and an open stream of events ends before
/// it gives another one.
///
/// # Errors
/// There is no such token, or the store fails.
pub async fn revoke(store: &dyn Store, id: &str) -> Result<(), TokenError> {
    let unknown = || TokenError::Unknown(id.chars().take(80).collect());
    let key = keys::token(id);
    let entry = store.get(&key).await?.ok_or_else(unknown)?;
    let compares = vec![Compare { key: key.clone(), revision: entry.revision }];
    match store.txn(Txn { compares, ops: vec![Op::Delete { key }] }).await? {
        Outcome::Committed(_) => Ok(()),
        // A token is written once: somebody else has just taken it back.
        Outcome::Conflict(_) => Err(unknown()),
    }
}

/// The token of an `authorization: Bearer` header, with its id.
fn bearer(metadata: &MetadataMap) -> Option<(&str, &str)> {
    let header = metadata.get("authorization")?.to_str().ok()?;
    let token = header.strip_prefix("Bearer ")?;
    let (id, _) = token.split_once('.')?;
    let plain = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
    (plain && token.len() <= MAX_TOKEN).then_some((token, id))
}

/// Who is calling.
///
/// # Errors
/// `UNAUTHENTICATED`, the same for every kind of bad token.
pub async fn identify(store: &dyn Store, metadata: &MetadataMap) -> Result<Who, Status> {
    let refused =
        || Status::unauthenticated("the token is missing or not valid; check the profile");
    let (token, id) = bearer(metadata).ok_or_else(refused)?;
    let key = keys::token(id);
    let entry = store.get(&key).await.map_err(|e| Status::internal(e.to_string()))?;
    let entry = entry.ok_or_else(refused)?;
    let kept: Token = decode(&key, &entry.value).map_err(|e| Status::internal(e.to_string()))?;
    if bool::from(hash(token).as_bytes().ct_eq(kept.hash.as_bytes())) {
        Ok(Who { organization: kept.organization, role: kept.role })
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    fn header(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().expect("ascii"));
        metadata
    }

    #[tokio::test]
    async fn only_the_issued_token_is_accepted_and_it_is_stored_hashed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        let store = SqliteStore::open(&path).expect("opens");
        let acme: OrganizationName = "acme".parse().expect("valid");
        let token = issue(&store, acme.clone(), Role::Tenant).await.expect("issued");
        let bearer = format!("Bearer {}", token.expose());
        let who = identify(&store, &header(&bearer)).await.expect("accepted");
        assert_eq!(who, Who { organization: acme, role: Role::Tenant });

        let other =
            issue(&store, "b".parse().expect("valid"), Role::Operator).await.expect("issued");
        let (id, _) = token.expose().split_once('.').expect("two parts");
        let (_, secret) = other.expose().split_once('.').expect("two parts");
        let mixed = format!("Bearer {id}.{secret}");
        let cut = bearer[..bearer.len() - 1].to_owned();
        for bad in ["", "Bearer", "Bearer .", "Basic x", &mixed, &cut, "Bearer ../x.y"] {
            let status = identify(&store, &header(bad)).await.expect_err("accepted");
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{bad}");
        }
        let mut known = tokens(&store).await.expect("listed");
        known.sort_by(|a, b| a.organization.cmp(&b.organization));
        let roles: Vec<_> = known.iter().map(|t| (t.organization.as_str(), t.role)).collect();
        assert_eq!(roles, [("acme", Role::Tenant), ("b", Role::Operator)]);
        assert_eq!(known[0].id, id);

        let entry = store.get(&keys::token(id)).await.expect("get").expect("there");
        let stored = String::from_utf8(entry.value).expect("text");
        let (_, own) = token.expose().split_once('.').expect("two parts");
        assert!(!stored.contains(own), "the store has the secret in clear");

        revoke(&store, id).await.expect("taken back");
        let status = identify(&store, &header(&bearer)).await.expect_err("accepted");
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        let other = format!("Bearer {}", other.expose());
        assert!(identify(&store, &header(&other)).await.is_ok());
        for gone in [id, "", "../x"] {
            let fault = revoke(&store, gone).await.expect_err("taken back twice");
            assert!(matches!(fault, TokenError::Unknown(_)), "{fault}");
        }
    }
}
