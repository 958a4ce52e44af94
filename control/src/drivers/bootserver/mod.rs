//! The boot server: what it should know, and the way to tell it.

mod client;
mod desired;
mod push;

pub use client::{BootdError, Credentials, Dial, EdgeClient};
pub use desired::{contents, farm_segment};
pub use push::{Push, plan};
