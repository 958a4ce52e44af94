//! What operators and tenants may ask. Handlers read and write the store and nothing else; the
//! reconcilers wake at each change.

mod apply;
mod auth;
mod service;
mod show;

pub use auth::{KnownToken, TokenError, issue, revoke, tokens};
pub use service::serve;
