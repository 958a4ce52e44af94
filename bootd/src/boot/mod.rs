//! Decides what a booting node gets. The [`Desk`] is where the servers of all segments ask; the
//! judgement itself is in pure modules: who it is ([`identity`]), where its boot stands
//! ([`window`]), what it is answered ([`decide`], [`script`], [`node_image`]) and what its zone is
//! ([`grants`]).

pub(crate) mod decide;
mod desk;
mod fetch;
mod grants;
mod identity;
mod node_image;
mod presence;
mod records;
mod script;
mod steps;
mod window;

pub(crate) use desk::{AttachRefusal, Attached, Credential, Desk, DeskParts};
pub(crate) use fetch::{ImagePart, NodeFile, Refusal};
pub(crate) use grants::grants;
pub(crate) use identity::same_uuid;
pub(crate) use presence::{Presence, Seen, Ticket};
pub(crate) use records::{Records, RecordsError};
pub(crate) use window::{Boot, State};
