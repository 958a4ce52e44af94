//! The facts that control keeps: plain values, their keys in the store, and their legal changes.

mod blueprint;
mod farm;
mod grid;
pub mod keys;
mod member;
mod node;
mod record;
pub mod volume;

pub use blueprint::{Blueprint, Boot, Health, Root};
pub use farm::{Expose, Farm, FarmSpec, Scaling, TierSpec};
pub use grid::{
    Bmc, Bootd, Class, Deadlines, External, FarmRange, Grid, Idle, Nic, NodeSpec, Policy, Switch,
    nth_subnet,
};
pub use member::Member;
pub use node::{IllegalTransition, Node, NodeState, Transition};
pub use record::{Action, BootdRecord, Decision, DecisionInput, Event, MembershipVersion, Token};
pub use record::{NewEvent, Role, Who};
pub use volume::FarmVolume;
