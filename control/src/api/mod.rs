//! What operators and tenants may ask. Handlers read and write the store and nothing else; the
//! reconcilers wake at each change. One question goes on to the boot server, which alone can answer
//! it (`boots`).

mod apply;
mod auth;
mod boots;
mod service;
mod show;

pub use auth::{KnownToken, TokenError, issue, revoke, tokens};
pub use service::serve;
